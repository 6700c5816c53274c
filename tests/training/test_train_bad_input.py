"""Bad input to ``vidray train``: a clear message and an exit code, before any GPU or worker is asked for.

Commands that cannot work are given ``--device cuda`` on top: here that is an error too, but one that comes later.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.support.checkpoints import make_videomae
from vidray.cli.demo import motion_video
from vidray.cli.main import main as cli

LABELS = ("left", "right")
FLAGS = ["--epochs", "1", "--global-batch-size", "4", "--views", "1x1", "--span", "full", "--no-flip"]
NO_GPU = [] if torch.cuda.is_available() else ["--device", "cuda"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"), initializer_range=0.02)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Twelve videos below ``train/``, four below ``val/``."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(16):
        part, label = "train" if number < 12 else "val", LABELS[number % 2]
        (folder / part / label).mkdir(parents=True, exist_ok=True)
        video = motion_video(label, seed=number, num_frames=8)
        (folder / part / label / f"{number:03d}.mp4").write_bytes(video)
    return folder


@pytest.fixture
def source(clips, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(clips, tmp_path / "source"))


def train(source: object, model: object, output: object, *flags: str) -> int:
    return cli(["train", "--source", str(source), "--model", str(model), "--output", str(output), *FLAGS, *flags])


def empty(source: Path) -> None:
    shutil.rmtree(source)
    source.mkdir()


def missing(source: Path) -> None:
    shutil.rmtree(source)


def one_class(source: Path) -> None:
    for part in ("train", "val"):
        shutil.rmtree(source / part / "right")


def class_with_one_video(source: Path) -> None:
    """And no validation part, which would have to be split off."""
    shutil.rmtree(source / "val")
    for path in sorted((source / "train" / "right").iterdir())[1:]:
        path.unlink()


def unknown_label_in_validation(source: Path) -> None:
    (source / "val" / "right").rename(source / "val" / "up")


def no_training_part(source: Path) -> None:
    shutil.rmtree(source / "train")


def video_without_label(source: Path) -> None:
    shutil.copy(next((source / "train" / "left").iterdir()), source / "train" / "lost.mp4")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty, "nothing found in"),
        (missing, "source"),
        (one_class, "have the label 'left'; at least two are needed"),
        (class_with_one_video, "'right' (1 videos). Training and validation need at least one group each; add videos"),
        (unknown_label_in_validation, "the training split does not know these labels: 'up' (2 in val)"),
        (no_training_part, "at least two"),
        (video_without_label, "lies in no folder that names its label"),
    ],
)
def test_sources_that_will_not_do(
    damage: Callable[[Path], None], message: str, source: Path, model: Path, tmp_path: Path, capsys
) -> None:
    damage(source)
    assert train(source, model, tmp_path / "out", *NO_GPU) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_table_with_a_row_without_label(clips, model, tmp_path, capsys):
    listing = tmp_path / "all.csv"
    with listing.open("w", newline="") as file:
        csv.writer(file).writerows([["uri", "label"], [next(clips.glob("*/*/*.mp4")), ""]])
    assert train(listing, model, tmp_path / "out", *NO_GPU) == 2
    assert "row 1 of" in capsys.readouterr().err


def test_outputs_that_cannot_be_written(clips, model, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file" / "out", Path("/proc/out")):  # root may write anywhere, but not there
        assert train(clips, model, output, *NO_GPU) == 2
        error = capsys.readouterr().err
        assert f"cannot write to {output}" in error
        assert "Traceback" not in error


def test_an_output_that_holds_what_no_run_made_is_left_alone(clips, model, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in model.iterdir()}
    assert train(clips, model, model, *NO_GPU) == 2
    assert "no run of vidray train made; take another" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in model.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--restart-from", "latest"], "like step-00001200"),
        (["--learning-rate", "-1"], "--learning-rate"),
        (["--workers", "20"], "at most --global-batch-size"),
        (["--log-to", "mlflow"], "--log-to mlflow: it is not installed; pip install mlflow"),
        (["--log-to", "wandb"], "--log-to wandb: it is not installed; pip install wandb"),
        (["--views", "5"], "like 5x3"),
    ],
)
def test_flags_that_make_no_sense(clips, model, tmp_path, capsys, flags, message):
    assert train(clips, model, tmp_path / "out", *NO_GPU, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there(clips, model, tmp_path, capsys):
    """The error that the commands above would have run into."""
    assert train(clips, model, tmp_path / "out", *NO_GPU) == 2
    assert "--device cuda: there is no GPU here" in capsys.readouterr().err


def corrupt(folder: Path) -> str:
    """One video in ``folder`` becomes none. Returns its URI."""
    path = sorted(folder.iterdir())[0]
    path.write_bytes(b"no video")
    return str(path)


def test_a_corrupt_video_in_each_place_is_counted_and_listed(source, model, tmp_path, one_thread):
    """And with mixup the checkpoint is still one for single labels."""
    bad = [corrupt(source / "train" / "left"), corrupt(source / "val" / "right")]
    flags = ["--max-failure-rate", "0.3", "--mixup", "0.8", "--cutmix", "1"]
    assert train(source, model, tmp_path / "out", *flags) == 0
    listed = pq.read_table(tmp_path / "out/bad_videos.parquet").to_pylist()
    assert [(row["uri"], row["label"], row["split"]) for row in listed] == [
        (bad[0], "left", "train"),
        (bad[1], "right", "val"),
    ]
    assert all(row["status"] != "ok" and row["error"] for row in listed)
    facts = json.loads((tmp_path / "out/vidray.json").read_text())
    assert (facts["metrics"]["num_videos"], facts["metrics"]["num_failed"]) == (3, 1)
    assert facts["training"]["settings"]["mixup"] == 0.8
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == "single_label_classification"


@pytest.mark.parametrize(
    ("place", "message"),
    [("train/left", "1 of 12 training videos are bad"), ("val/right", "1 of 4 validation videos are bad")],
)
def test_too_many_corrupt_videos_end_the_run(place, message, source, model, tmp_path, capsys, one_thread):
    bad = corrupt(source / place)
    assert train(source, model, tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert message in error
    assert f"\n  {bad}: unsupported: " in error
    (row,) = pq.read_table(tmp_path / "out/bad_videos.parquet").to_pylist()
    assert (row["uri"], row["status"]) == (bad, "unsupported")
    assert "Traceback" not in error
