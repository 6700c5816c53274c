"""The sample videos, end to end: right statuses, right facts, and the scores that Transformers itself gives."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_same
from tests.support.peers import pytorchvideo_of
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob

BAD = {"audio_only.mp3": "no_video"}
"""All other files, also the damaged one and the one of 1 × 1 pixel, have frames to score."""

NUM_FRAMES, SIZE = 16, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"), num_frames=NUM_FRAMES, size=SIZE, patch_size=16)


@pytest.fixture(scope="module")
def rows(tmp_path_factory, sample_videos, model, local_ray) -> dict[str, dict]:
    """The row of every sample video, by file name, scored with one clip over the whole video."""
    output = tmp_path_factory.mktemp("out")
    flags = {"views": "1x1", "span": "full", "top_k": 7, "max_failure_rate": 1.0}
    ScoreJob(ScoreConfig(source=(str(sample_videos / "*" / "*"),), model=str(model), output=str(output), **flags)).run()
    files = [str(path) for path in sample_videos.glob("*/*")]
    return {Path(row["uri"]).name: row for row in runs.assert_each_once(output, files)}


def test_every_sample_ends_as_one_row_with_the_right_status(rows):
    got = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert got == BAD
    assert all(row["error"] for row in rows.values() if row["status"] != "ok")


def test_duration_size_and_frames_are_those_that_ffmpeg_finds_by_decoding_everything(rows, sample_videos):
    for path in sample_videos.glob("*/*"):
        row = rows[path.name]
        if row["status"] != "ok" or path.parent.name == "bad":
            continue
        seen = decode_everything(path)
        assert (row["width"], row["height"]) == seen["size"], path.name
        assert row["duration_seconds"] == pytest.approx(seen["duration"], abs=0.05), path.name
        assert row["num_frames_decoded"] == seen["num_frames"], path.name
        # One clip of UCF101 (v_Basketball_g18_c04) has a packet that gives no frame: 188 promised, 187 there.
        assert row["num_frames_expected"] - row["num_frames_decoded"] in (0, 1), path.name


def decode_everything(path: Path) -> dict:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.pts, frame.width, frame.height, frame.rotation) for frame in container.decode(stream)]
        pts = sorted(pts for pts, *_ in frames if pts is not None)
        step = pts[-1] - pts[-2] if len(pts) > 1 else 0
        _, width, height, rotation = frames[0]
        return {
            "num_frames": len(frames),
            "size": (height, width) if rotation % 180 else (width, height),
            "duration": float((pts[-1] + step - pts[0]) * (stream.time_base or Fraction(1))),
        }


def test_a_damaged_file_is_scored_with_what_was_decoded_and_says_so(rows):
    row = rows["corrupted.mp4"]
    assert row["status"] == "ok"
    assert row["num_frames_decoded"] <= row["num_frames_expected"]


def reference_frames(path: Path) -> torch.Tensor:
    """(T, C, H, W) uint8 at full size: PyTorchVideo's clip of the whole video, and its uniform subsample of that."""
    video = pytorchvideo_of(path.read_bytes())
    frames = video.get_clip(0, video.duration + 1)["video"]
    indices = torch.linspace(0, frames.shape[1] - 1, NUM_FRAMES).clamp(0, frames.shape[1] - 1).long()
    return frames[:, indices].permute(1, 0, 2, 3).to(torch.uint8)


def transformers_scores(model: Path, frames_TCHW: torch.Tensor) -> np.ndarray:
    """Softmax scores in label order from Transformers alone: its processor (no resize) and its classifier."""
    from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessor

    processor = VideoMAEImageProcessor.from_pretrained(model, do_resize=False, do_center_crop=False)
    network = VideoMAEForVideoClassification.from_pretrained(model).eval()
    pixels = processor(list(frames_TCHW.numpy()), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return network(pixels).logits.softmax(-1)[0].numpy()


def our_scores(row: dict, model: Path) -> np.ndarray:
    labels = json.loads((model / "config.json").read_text())["id2label"]
    by_label = {entry["label"]: entry["score"] for entry in row["top_k"]}
    return np.array([by_label[labels[str(i)]] for i in range(len(labels))])


def resized_by_torchvision(frames_TCHW: torch.Tensor) -> torch.Tensor:
    resized = functional.resize(frames_TCHW, [SIZE], antialias=True)
    return functional.center_crop(resized, [SIZE, SIZE])


UCF = [
    "v_ApplyEyeMakeup_g03_c01.avi",
    "v_Archery_g16_c05.avi",
    "v_BasketballDunk_g14_c06.avi",
    "v_BalanceBeam_g20_c03.avi",
]


@pytest.mark.parametrize("name", UCF)
def test_scores_are_close_to_transformers_on_pytorchvideo_frames_resized_by_torchvision(
    rows, sample_videos, model, name
):
    """Another filter makes other pixels: up to 0.013 in the scores. Another processor's filters add 0.0002."""
    frames = resized_by_torchvision(reference_frames(sample_videos / "ucf101" / name))
    expected = transformers_scores(model, frames)
    assert np.abs(our_scores(rows[name], model) - expected).max() < 0.02


@pytest.mark.parametrize("name", UCF)
def test_scores_are_those_of_transformers_on_pytorchvideo_frames_resized_alike(rows, sample_videos, model, name):
    """The frames that PyTorchVideo chose, resized by our filter, scored by Transformers alone."""
    path = sample_videos / "ucf101" / name
    chosen = chosen_frame_numbers(path)
    frames = torch.from_numpy(resized_by_our_filter(path, chosen)).permute(0, 3, 1, 2)
    expected = transformers_scores(model, frames)
    assert_same(our_scores(rows[name], model), expected, relative=FLOAT32_ROUNDING)


def chosen_frame_numbers(path: Path) -> list[int]:
    """Which frames of the file PyTorchVideo's clip and subsample take, found by comparing pixels."""
    wanted = reference_frames(path).permute(0, 2, 3, 1).numpy()
    with av.open(str(path)) as container:
        every = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    numbers, start = [], 0
    for frame in wanted:
        start = next(i for i in range(start, len(every)) if np.array_equal(every[i], frame))
        numbers.append(start)
    return numbers


def resized_by_our_filter(path: Path, numbers: list[int]) -> np.ndarray:
    """(T, H, W, C): those frames at model size, through the project's resize but none of its choice of frames."""
    from vidray.types import ViewConfig
    from vidray.video.decoder import view_crops

    convert = view_crops(ViewConfig(num_frames=NUM_FRAMES, size=SIZE, num_clips=1, span="full"))
    with av.open(str(path)) as container:
        every = list(container.decode(video=0))
    return np.stack([convert(every[number])[0] for number in numbers])
