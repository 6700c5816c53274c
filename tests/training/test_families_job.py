"""Every family goes through the whole job, from a folder as ``save_pretrained`` leaves it.

VideoMAE, which all other tests of jobs have, is not here; of variants of one family test_families shows the Predictor.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import runs
from tests.support.checkpoints import make_family
from tests.support.family_training import NUM_VIDEOS
from vidray.checkpoints.checkpoint import read_checkpoint
from vidray.cli.main import main as cli
from vidray.models.families import FAMILIES
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob

LABELS = ("left", "right", "still")


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "videomae"])
def test_bucket_is_scored_with_the_familys_own_views(model_type: str, tmp_path: Path, local_ray: None) -> None:
    model = make_family(tmp_path / "model", model_type, labels=LABELS)
    uris = runs.make_bucket(tmp_path / "videos", num_videos=3, num_frames=40)
    config = ScoreConfig(source=(str(tmp_path / "videos"),), model=str(model), output=str(tmp_path / "out"))
    assert [summary["num_scored"] for summary in ScoreJob(config).run()] == [3]
    for row in runs.assert_each_once(tmp_path / "out", uris):
        assert row["status"] == "ok", row["error"]
        assert row["num_views"] == (1 if model_type == "movinet" else 5)
        assert {entry["label"] for entry in row["top_k"]} == set(LABELS)
        assert sum(entry["score"] for entry in row["top_k"]) == pytest.approx(1, abs=1e-4)


def test_command_trains_a_new_head_on_two_workers_of_ray_and_leaves_the_backbone_as_it_was(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in MoViNet's tutorial. Scoring then loads what came out, and Ctrl-C is what it was before."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    model = make_family(tmp_path / "model", "movinet", labels=LABELS)
    runs.make_classes(tmp_path / "videos", num_videos=NUM_VIDEOS, num_frames=12)
    places = ["--source", str(tmp_path / "videos"), "--model", str(model), "--output", str(tmp_path / "out")]
    flags = ["--workers", "2", "--device", "cpu", "--epochs", "2", "--freeze-backbone", "--no-flip"]
    assert cli(["train", *places, *flags, "--learning-rate", "0.01", "--global-batch-size", "4"]) == 0
    assert "is finished: accuracy" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) == on_interrupt

    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert any(name.endswith("running_var") for name in after)
    assert read_checkpoint(str(tmp_path / "out")).labels == ("left", "right")
    assert "Confusion matrix" in (tmp_path / "out/report/index.html").read_text()
