"""`vidray evaluate --segments`: real videos scored in windows by a real network, held against labels with times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vidray
from tests.scoring.test_segments import colours_with_labels, plain_video
from tests.support.checkpoints import make_videomae
from vidray.cli.main import main as cli

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture(scope="module")
def labels(tmp_path_factory, model) -> Path:
    """Two videos, first one colour and then another for 4 s each; the second's labels are 2 s too late."""
    folder = tmp_path_factory.mktemp("videos")
    colours = colours_with_labels(model, 2)
    first, second = colours
    for name in ("right", "late"):
        (folder / f"{name}.mp4").write_bytes(plain_video(list(colours.values()), seconds=4, fps=5))
    lines = [f"right.mp4,0,4,{first}", f"right.mp4,4,8,{second}", f"late.mp4,2,6,{first}", f"late.mp4,6,8,{second}"]
    (folder / "labels.csv").write_text("\n".join(["uri,start,end,label", *lines]))
    return folder / "labels.csv"


def test_moments_are_held_against_labels(labels, model, tmp_path, capsys) -> None:
    """Windows of 2 s find 0 to 4 and 4 to 8 in both videos. Late labels overlap by 2/6 and 2/4."""
    arguments = ["evaluate", "--source", str(labels), "--model", str(model), "--output", str(tmp_path / "out")]
    assert cli([*arguments, "--segments", "2", "--min-score", "0", "--device", "cpu"]) == 0
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {name: figures[name] for name in ("num_videos", "num_failed", "num_labelled", "num_found")} == {
        **{"num_videos": 2, "num_failed": 0, "num_labelled": 4, "num_found": 4}
    }
    precision = figures["average_precision"]
    first = next(iter(label for label in precision if label != "mean" and precision[label]["0.4"] < 1))
    assert precision[first]["0.3"] == 1
    # Of two found moments of a class one is right: 1 · 1/2 if it is the surer one, else 1/2 · 1/2.
    assert precision[first]["0.7"] in (0.5, 0.25)
    (second,) = precision.keys() - {"mean", first}
    assert precision[second]["0.5"] == 1
    assert precision[second]["0.7"] in (0.5, 0.25)
    assert "average precision at tIoU" in capsys.readouterr().out
    again = vidray.evaluate(labels, model, segments=2.0, min_score=0, device="cpu", quiet=True)
    assert capsys.readouterr().err == ""
    assert again["num_found"] == 4
    assert again["average_precision"]["mean"]["0.3"] == 1  # at others it depends on which is the surer: they are alike


def test_an_output_that_holds_other_windows_too_is_read_for_those_that_were_asked_for(labels, model, tmp_path) -> None:
    """Also when these were scored before the others, and are not scored again."""
    same = {"min_score": 0, "device": "cpu", "output": tmp_path / "out", "quiet": True}
    found = [vidray.evaluate(labels, model, segments=seconds, **same)["num_found"] for seconds in (2.0, 8.0, 2.0)]
    assert found == [4, 2, 4]


@pytest.mark.parametrize(
    ("line", "flags", "message"),
    [
        ("right.mp4,0,,Archery", ["--segments", "2"], "is labelled 'Archery' without an end"),
        ("right.mp4,0,4,Nonsense", ["--segments", "2"], "Nonsense"),
        ("right.mp4,0,4,Archery", ["--segments", "0"], "--segments: got 0.0, allowed is"),
        ("right.mp4,0,4,Archery", ["--segment-stride", "1"], "--segment-stride: got 1.0, allowed is a stride with"),
        ("right.mp4,0,4,Archery", ["--segments", "2", "--min-score", "7"], "--min-score: got 7.0, allowed is between"),
    ],
)
def test_labels_and_flags_that_will_not_do_are_named(line, flags, message, labels, model, tmp_path, capsys) -> None:
    (tmp_path / "right.mp4").write_bytes(labels.with_name("right.mp4").read_bytes())
    (tmp_path / "labels.csv").write_text(f"uri,start,end,label\n{line}\n")
    assert cli(["evaluate", "--source", str(tmp_path / "labels.csv"), "--model", str(model), *flags]) == 2
    assert message in capsys.readouterr().err
