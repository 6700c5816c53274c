"""``make demo``: train on generated videos, score others, and query the result, end to end on this machine.

The videos show coloured shapes that move. The motion is the class, so that no single frame tells it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

_DIRECTIONS = {
    "left": (-1, 0, 0),
    "right": (1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
    "growing": (0, 0, 1),
    "shrinking": (0, 0, -1),
}
MOTIONS = tuple(_DIRECTIONS)
"""The classes. All show the same shapes, colours, places and sizes."""

_SIZE = 96
_FPS = 15
_ENCODER = {"preset": "veryfast", "crf": "18", "x264-params": "mbtree=0"}
"""With macroblock trees, or several threads, the same frames now and then come out as other bytes."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make labelled videos, train a small model on them, score a bucket it has not seen, and query the result."""

    folder: str = "demo-out"
    """Where the videos, the checkpoint and the scores go."""
    num_training: int = 600
    """Labelled videos to train on."""
    num_videos: int = 120
    """Videos to score."""
    epochs: int = 18
    """Passes over the labelled videos."""
    workers: int = 2
    """Training processes."""


_TRAINING: dict[str, Any] = {
    # Left and right are classes: a mirrored clip would have a wrong label.
    "flip": False,
    "span": "full",
    "views": "1x1",
    "global_batch_size": 16,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup_share": 0.1,
    "weight_decay": 0.05,
    "min_scale": 1.0,
    "max_scale": 1.1,
}
"""Flags of the demo's training, from scratch instead of from a published checkpoint."""


def motion_video(label: str, *, seed: int, num_frames: int = 24) -> bytes:
    """An MP4 (H.264, 96 × 96, 15 frames per second) of one shape that moves as ``label`` says.

    Raises ValueError for a label that is none of ``MOTIONS``.
    """
    if label not in MOTIONS:
        raise ValueError(f"label must be one of {MOTIONS}, got {label!r}")
    rng = np.random.default_rng([seed, MOTIONS.index(label)])
    path = _path(label, rng)
    shape, colour, ground = _look(rng)
    frames = (_draw(path(i / num_frames), shape, colour, ground) for i in range(num_frames))
    return _encode(list(frames))


_Pose = tuple[float, float, float]
"""(x, y, size): the shape's centre, from 0 to 1 with y pointing down, and its size as a factor."""


def _path(label: str, rng: np.random.Generator) -> Callable[[float], _Pose]:
    """The shape's pose at each moment from 0 to 1.

    What changes comes back on the other side, so that every place and size is as likely in every class, and one frame
    tells nothing.
    """
    x, y, phase = rng.uniform(size=3)
    # Slow enough that a shape moves by a part of itself from one sampled frame to the next.
    turns = rng.uniform(0.25, 0.5)
    dx, dy, growth = _DIRECTIONS[label]

    def pose(t: float) -> _Pose:
        return (x + dx * turns * t) % 1.0, (y + dy * turns * t) % 1.0, 0.5 + (phase + growth * turns * t) % 1.0

    return pose


def _look(rng: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray]:
    shape = str(rng.choice(["disc", "square", "ring"]))
    colour = rng.integers(120, 256, size=3)
    ground = rng.integers(0, 80, size=3)
    return shape, colour, ground


def _draw(pose: _Pose, shape: str, colour: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the shape in its pose, wrapped around the edges."""
    x, y, size = pose
    axis = (np.arange(_SIZE) + 0.5) / _SIZE
    dx = (axis[None, :] - x + 0.5) % 1.0 - 0.5
    dy = (axis[:, None] - y + 0.5) % 1.0 - 0.5
    distance = np.maximum(abs(dx), abs(dy)) if shape == "square" else np.hypot(dx, dy)
    inside = (distance < 0.15 * size) & ((distance > 0.07 * size) | (shape != "ring"))
    return np.where(inside[..., None], colour, ground).astype(np.uint8)


def _encode(frames: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=_FPS, options=_ENCODER)
        stream.width = stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for array in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def make_bucket(folder: Path, *, num_videos: int, seed: int = 0) -> None:
    """Write videos of all motions in turn, named ``<label>-<number>.mp4``, and one that is cut off in the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_videos):
        label = MOTIONS[number % len(MOTIONS)]
        (folder / f"{label}-{number:04d}.mp4").write_bytes(motion_video(label, seed=seed + number))
    (folder / "broken.mp4").write_bytes(motion_video("left", seed=seed)[:200])


def make_labelled_bucket(folder: Path, *, num_videos: int, seed: int = 0) -> None:
    """Write videos of all motions in turn, each into the folder of its label: ``<label>/<number>.mp4``.

    Video i is made from ``seed + i``, here and in `make_bucket`: what must be unseen needs seeds beyond these.
    """
    for number in range(num_videos):
        label = MOTIONS[number % len(MOTIONS)]
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number:04d}.mp4").write_bytes(motion_video(label, seed=seed + number))


def make_untrained_checkpoint(folder: Path) -> None:
    """A small VideoMAE with random weights, in the layout of published checkpoints."""
    import json

    import torch
    import transformers
    from transformers.models.videomae.configuration_videomae import VideoMAEConfig
    from transformers.models.videomae.modeling_videomae import VideoMAEForVideoClassification

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=64,
        patch_size=16,
        num_frames=8,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        id2label=dict(enumerate(MOTIONS)),
        label2id={label: i for i, label in enumerate(MOTIONS)},
    )
    VideoMAEForVideoClassification(config).save_pretrained(folder)
    processor = {
        "video_processor_type": "VideoMAEVideoProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor, indent=2))


_QUERY = """SELECT status, parse_filename(uri, true).split('-')[1] AS truth, label, count(*) AS videos,
       round(avg(score), 3) AS mean_score
FROM '{output}/predictions/*/*.parquet' GROUP BY ALL ORDER BY ALL"""

_RIGHT = """SELECT count(*) FILTER (label = parse_filename(uri, true).split('-')[1]), count(*)
FROM '{output}/predictions/*/*.parquet' WHERE status = 'ok'"""


def run_demo(config: DemoConfig) -> int:
    """Make videos, train on them, score others, query the scores. Returns the exit code: 1 if nothing was learnt."""
    folder = Path(config.folder)
    steps = (_make_videos, _train, _score)
    started = time.perf_counter()
    for number, step in enumerate(steps, start=1):
        step(config, folder, f"{number}/{len(steps) + 1}")
    right, total = _query(folder, f"{len(steps) + 1}/{len(steps) + 1}")
    _report(folder)
    print(f"\n{right} of {total} videos that it had never seen are right: {right / total:.1%}")
    print(f"in {time.perf_counter() - started:.0f} s. Everything is in {folder}; the same command finds it all done")
    return 0 if right > total / 2 else 1


def _say(number: str, text: str) -> None:
    print(f"\n[{number}] {text}", flush=True)


def _make_videos(config: DemoConfig, folder: Path, number: str) -> None:
    _say(number, f"making {config.num_training} labelled videos of moving shapes, and {config.num_videos} to score")
    if not (folder / "model" / "config.json").exists():
        make_labelled_bucket(folder / "train", num_videos=config.num_training)
        make_untrained_checkpoint(folder / "untrained")
    if not (folder / "videos").exists():
        make_bucket(folder / "videos", num_videos=config.num_videos, seed=1_000_000)


def _train(config: DemoConfig, folder: Path, number: str) -> None:
    from vidray.training import job
    from vidray.training.config import TrainConfig

    flags = _TRAINING | {"epochs": config.epochs, "workers": config.workers}
    places: dict[str, Any] = {
        "source": str(folder / "train"),
        "model": str(folder / "untrained"),
        "output": str(folder / "model"),
    }
    _say(number, _command("train", places | flags))
    job.train(
        TrainConfig(**flags, **places | {"source": (places["source"],)}), log=lambda text: print(text, flush=True)
    )


def _score(config: DemoConfig, folder: Path, number: str) -> None:
    from vidray.scoring.config import ScoreConfig
    from vidray.scoring.job import ScoreJob

    places: dict[str, Any] = {
        "source": str(folder / "videos"),
        "model": str(folder / "model"),
        "output": str(folder / "scores"),
        "runner": "ray",
        "max_failure_rate": max(0.05, 1 / (config.num_videos + 1)),  # one is broken on purpose
    }
    _say(number, f"{_command('score', places)}\n(as on a cluster; without --runner ray it needs no Ray)")
    ScoreJob(ScoreConfig(**places | {"source": (places["source"],)})).run()


def _query(folder: Path, number: str) -> tuple[int, int]:
    """Prints what any reader of Parquet sees; returns how many scored videos are right, and how many there are."""
    import duckdb

    query = _QUERY.format(output=folder / "scores")
    _say(number, f"{query}\n\n{duckdb.sql(query)}")
    with duckdb.connect() as db:
        counts = db.execute(_RIGHT.format(output=folder / "scores")).fetchall()
    return counts[0]


def _report(folder: Path) -> None:
    from vidray.results.report import ReportConfig, report

    report(ReportConfig(output=str(folder / "scores"), to=str(folder / "report.html")))
    print(f"\nto read in a browser: {folder / 'report.html'} on the scores,")
    print(f"{folder / 'model/report/index.html'} on the training")


def _command(name: str, flags: dict[str, object]) -> str:
    """What would be typed for the same."""
    words = [f"vidray {name}"]
    for flag, value in flags.items():
        dashed = flag.replace("_", "-")
        words.append(f"--no-{dashed}" if value is False else f"--{dashed} {value}")
    return " ".join(words)
