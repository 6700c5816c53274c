"""`--no-labels`: whole jobs that keep features alone, and the commands that read what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.test_backbone import make_backbone
from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_same
from vidray.cli.main import main
from vidray.errors import UsageError
from vidray.results.report import scoring_page
from vidray.results.verify import VerifyConfig, verify
from vidray.scoring.classifier import Classifier
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob

pytestmark = pytest.mark.usefixtures("one_thread")


def score(videos: Path, model: Path, output: Path, **more: Any) -> list[dict]:
    values = {"views": "2x1", "max_failure_rate": 1.0, "device": "cpu", "runner": "local", "embeddings": True, **more}
    ScoreJob(ScoreConfig(source=(str(videos),), model=str(model), output=str(output), **values)).run()
    return runs.read_rows(output)


@pytest.fixture
def videos(tmp_path) -> Path:
    runs.make_classes(tmp_path / "videos", num_videos=4)
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


@pytest.mark.parametrize("more", [{}, {"segments": 0.2, "views": None, "span": "full"}])
def test_a_job_keeps_the_embeddings_that_it_keeps_beside_labels_and_nothing_of_those(tmp_path, videos, more) -> None:
    model = make_videomae(tmp_path / "model")
    labelled = score(videos, model, tmp_path / "labelled", **more)
    rows = score(videos, model, tmp_path / "out", no_labels=True, **more)
    assert len({row["result_key"] for row in (*rows, *labelled)}) == 2
    for row, other in zip(rows, labelled, strict=True):
        assert (row["status"], row["label"], row["score"], row["top_k"]) == (other["status"], None, None, None)
        if row["status"] != "ok":
            continue
        assert_same(np.array(row["embedding"]), np.array(other["embedding"]), relative=FLOAT32_ROUNDING)
        for window, beside in zip(row["segments"] or [], other["segments"] or [], strict=True):
            assert (window["start_seconds"], window["label"], window["top_k"]) == (beside["start_seconds"], None, None)
            assert_same(np.array(window["embedding"]), np.array(beside["embedding"]), relative=FLOAT32_ROUNDING)
    assert verify(VerifyConfig(output=str(tmp_path / "out"))).problems == ()


def test_every_command_that_reads_the_output_of_a_bare_backbone_says_what_there_is(tmp_path, videos, capsys) -> None:
    model, output = make_backbone(tmp_path / "model", "vjepa2", "VJEPA2Model"), str(tmp_path / "out")
    rows = score(videos, model, tmp_path / "out", no_labels=True)
    assert [len(row["embedding"]) for row in rows if row["status"] == "ok"] == [32] * 4
    assert main(["query", "--output", output]) == 0
    told = capsys.readouterr().out
    assert "4 with an embedding and no label (--no-labels), 1 failed" in told
    assert "next: vidray similar" in told
    assert main(["similar", "--output", output, "--to", rows[1]["uri"]]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    found = next(section for section in scoring_page(output, None, None).sections if section.title == "What was found")
    assert "4 videos with an embedding and no label" in found.text
    assert main(["compare", "--output", output]) == 0
    assert main(["show", rows[1]["uri"], "--output", output]) == 0
    assert "an embedding and no label" in capsys.readouterr().out
    score(videos, model, tmp_path / "windows", no_labels=True, segments=0.2, views=None, span="full")
    assert main(["export", "--output", str(tmp_path / "windows"), "--format", "csv"]) == 1
    assert "segments without labels" in capsys.readouterr().err


def test_without_the_flag_a_backbone_is_refused_with_its_name(tmp_path) -> None:
    model = make_backbone(tmp_path / "model", "vjepa2", "VJEPA2Model")
    for use in (lambda: score(tmp_path, model, tmp_path / "out"), lambda: Classifier(str(model))):
        with pytest.raises(UsageError, match="--embeddings --no-labels"):
            use()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--no-labels: got True, allowed is only with --embeddings"),
        (["--embeddings", "--labels", "a;b"], "--labels: got 'a;b', allowed is none with --no-labels"),
        (["--embeddings", "--streaming", "--timeline", "1"], "allowed is"),
    ],
)
def test_what_means_nothing_is_refused_by_name(flags, message, tmp_path, capsys) -> None:
    places = ["--source", "v", "--model", "m", "--output", str(tmp_path / "out")]
    assert main(["score", *places, "--no-labels", *flags]) == 2
    assert message in capsys.readouterr().err
