"""What every engine of a benchmark works on: a folder of distinct videos, and a checkpoint."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidray.sources.manifest import VIDEO_EXTENSIONS
from vidray.training.config import TrainConfig

NUM_GENERATED = 8
_NUM_FRAMES, _WIDTH, _HEIGHT, _FPS = 200, 320, 240, Fraction(25)
_BITS_PER_SECOND = 550_000
"""The sample of UCF101 that this was set by has 0.3 to 1.1 MB in clips of 7 to 10 seconds."""


def prepare_clips(folder: Path, *, source: Path | None) -> list[Path]:
    """Copies of the videos in ``source``, or generated ones, in ``folder``, where they can be linked from.

    Raises ValueError if ``source`` holds no videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source is None:
        for index in range(NUM_GENERATED):
            (folder / f"generated_{index:02d}.avi").write_bytes(make_clip(index))
    else:
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in VIDEO_EXTENSIONS:
                shutil.copyfile(path, folder / path.name)
    clips = sorted(folder.iterdir())
    if not clips:
        raise ValueError(f"--videos {source}: no videos there; looked for {' '.join(sorted(VIDEO_EXTENSIONS))}")
    return clips


def make_bucket(folder: Path, clips: list[Path], *, num_videos: int) -> Path:
    """``num_videos`` distinct files, the clips in turn. Hard links: 3,000 of them cost no space."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_videos):
        clip = clips[index % len(clips)]
        os.link(clip, folder / f"{index:06d}{clip.suffix}")
    return folder


def make_labelled_bucket(folder: Path, clips: list[Path], *, num_videos: int) -> Path:
    """``num_videos`` distinct files to train on, and one of each clip to validate with, in folders by clip.

    Raises ValueError if there is one clip only: training needs two labels.
    """
    if len(clips) < 2:
        raise ValueError(f"--videos: training needs at least two clips, one for each label, got {len(clips)}")
    for part, number in (("train", num_videos), ("val", len(clips))):
        for index in range(number):
            clip = clips[index % len(clips)]
            label = folder / part / f"label_{index % len(clips):02d}"
            label.mkdir(parents=True, exist_ok=True)
            os.link(clip, label / f"{part}_{index:06d}{clip.suffix}")
    return folder


def guide_config(
    videos: Path, *, model: Path, output: Path, num_clips: int, batch_size: int, **settings: Any
) -> TrainConfig:
    """The guide's recipe on ``make_labelled_bucket``'s videos, for whole epochs that make about ``num_clips``;
    validation, which is not measured, only at the end.
    """
    num_videos = sum(1 for path in (videos / "train").rglob("*") if path.is_file())
    epochs = max(1, num_clips // num_videos)
    return TrainConfig(
        source=(str(videos),),
        model=str(model),
        output=str(output),
        epochs=epochs,
        validate_every=epochs,
        global_batch_size=batch_size,
        views="1x1",
        span="stride",
        stride=4,
        **settings,
    )


def make_clip(seed: int, *, num_frames: int = _NUM_FRAMES) -> bytes:
    """A clip like those of UCF101: 320 × 240, 25 frames a second, MPEG-4 in AVI, at a bit rate as theirs."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mpeg4", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.bit_rate = _BITS_PER_SECOND
        for picture in _pictures(seed, num_frames):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def _pictures(seed: int, num_frames: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8: a textured ground that pans, a disc that circles, and the noise of a camera."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(30, 200, size=(_HEIGHT // 8, _WIDTH // 4, 3))
    ground = np.kron(blocks, np.ones((8, 8, 1))).astype(np.float32)
    noise = rng.normal(0, 6, size=(16, _HEIGHT, _WIDTH, 1)).astype(np.float32)
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    for number in range(num_frames):
        picture = np.roll(ground, -2 * number, axis=1)[:, :_WIDTH].copy()
        angle = 2 * np.pi * (number / 60 + seed / NUM_GENERATED)
        picture[np.hypot(x - 160 - 90 * np.cos(angle), y - 120 - 70 * np.sin(angle)) < 35] = rng.integers(180, 256, 3)
        yield (picture + noise[number % len(noise)]).clip(0, 255).astype(np.uint8)
