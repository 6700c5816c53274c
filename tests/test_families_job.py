"""Families that Transformers lacks go through the whole job, from a folder as ``save_pretrained`` leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import runs
from tests.checkpoints import make_family
from vidray.config import ScoreConfig
from vidray.scoring.job import ScoreJob

LABELS = ("left", "right", "still")


@pytest.mark.parametrize("model_type", ["pytorchvideo_slowfast", "pytorchvideo_x3d", "pytorchvideo_mvit", "movinet"])
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
