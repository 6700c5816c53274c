"""Results of two commands never come into one folder."""

from __future__ import annotations

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.cli.main import main as cli
from vidray.errors import UsageError
from vidray.storage.folder_kind import require_kind
from vidray.storage.store import Store


@pytest.mark.parametrize(
    ("there", "kind", "message"),
    [
        ("vidray.json", "scores", "is a checkpoint of vidray train; take a folder of its own"),
        ("config.json", "scores", "is a checkpoint"),
        ("_train/settings.json", "evaluation", "is a checkpoint"),
        ("_runs/r/plan.parquet", "checkpoint", "is the output of vidray score"),
        ("_verdicts/v.json", "evaluation", "is the output of vidray score"),
        ("evaluation.parquet", "scores", "is the output of vidray evaluate"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path, there, kind, message) -> None:
    store = Store(str(tmp_path))
    store.create(there, b"{}")
    with pytest.raises(UsageError, match=f"--output: {tmp_path} {message}"):
        require_kind(store, kind)


@pytest.mark.parametrize(
    ("there", "kind"),
    [
        (None, "scores"),
        ("video.mp4", "scores"),
        ("_runs/r/plan.parquet", "scores"),
        ("vidray.json", "checkpoint"),
        ("evaluation.parquet", "evaluation"),
        ("scores/_runs/r/plan.parquet", "evaluation"),
    ],
)
def test_others_are_not(tmp_path, there, kind) -> None:
    store = Store(str(tmp_path))
    if there is not None:
        store.create(there, b"{}")
    require_kind(store, kind)


def test_a_report_goes_over_no_video(tmp_path, capsys) -> None:
    assert cli(["report", "--output", str(tmp_path), "--to", str(tmp_path / "v.mp4")]) == 2
    assert "v.mp4', allowed is the name of an .html file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "train", "evaluate"])
def test_every_command_refuses_the_folder_of_another(tmp_path, command, capsys) -> None:
    model, scores = make_videomae(tmp_path / "model"), Store(str(tmp_path / "scores"))
    scores.create("_runs/r/plan.parquet", b"")
    videos = runs.make_classes(tmp_path / "videos", num_videos=4)
    output = scores.uri if command == "train" else str(model)
    arguments = ["--source", str(videos), "--model", str(model), "--output", output, "--device", "cpu"]
    before = sorted(tmp_path.rglob("*"))
    assert cli([command, *arguments]) == 2
    assert f"--output: {output} is " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
