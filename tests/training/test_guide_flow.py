"""The Transformers guide's flow on real files of UCF101: train a head, then score, with the same labels each way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.training.config import TrainConfig
from vidray.training.job import train

NUM_COPIES = 4
"""Of each clip, in the training part: steps per epoch, not more to learn."""


@pytest.fixture(scope="module")
def dataset(sample_videos, tmp_path_factory) -> Path:
    """``train/`` and ``val/`` with a folder for each class, as the guide's archive has them."""
    folder = tmp_path_factory.mktemp("ucf101")
    for video in sorted((sample_videos / "ucf101").glob("*.avi")):
        label = video.name.split("_")[1]
        names = [f"train/{label}/{number}_{video.name}" for number in range(NUM_COPIES)]
        for name in [*names, f"val/{label}/{video.name}"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, folder / name)
    return folder


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """A checkpoint whose head was trained on the clips, over the whole of each; its backbone is random."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = make_videomae(tmp_path_factory.mktemp("model"), labels=("a", "b"), size=64, patch_size=16, hidden_size=96)
    output = tmp_path_factory.mktemp("trained") / "out"
    config = TrainConfig(
        source=(str(dataset),),
        model=str(model),
        output=str(output),
        freeze_backbone=True,
        learning_rate=0.02,
        epochs=12,
        global_batch_size=7,
        validate_every=4,
        span="full",
        views="1x1",
        min_scale=1.0,
        max_scale=1.0,
        flip=False,
    )
    figures = train(config, log=print)
    torch.set_num_threads(before)
    assert figures["accuracy"] == 1.0
    assert figures["num_videos"] == 7
    return output


def right_labels(dataset: Path) -> dict[str, str]:
    return {str(path): path.parent.name for path in sorted(dataset.glob("val/*/*.avi"))}


def test_the_score_job_finds_the_labels_that_the_head_was_trained_on(trained, dataset, tmp_path):
    flags = ["--views", "1x1", "--span", "full"]
    runs.run(runs.command(source=dataset / "val", model=trained, output=tmp_path / "out", flags=flags))
    assert {row["uri"]: row["label"] for row in runs.read_rows(tmp_path / "out")} == right_labels(dataset)


def test_transformers_pipeline_finds_the_same_labels(trained, dataset):
    pytest.importorskip("torchcodec")
    from transformers import pipeline

    classify = pipeline("video-classification", model=str(trained))
    found = {video: classify(video, top_k=1)[0]["label"] for video in right_labels(dataset)}
    assert found == right_labels(dataset)
