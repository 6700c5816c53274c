"""The README.md of a checkpoint: what it says to type works, in its folder, as it stands."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import is_torchcodec_usable

from tests.support import runs
from tests.support.checkpoints import make_family
from tests.support.videos import make_video
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.checkpoints.write import write_new_checkpoint
from vidray.cli.demo import MOTIONS, make_labelled_bucket, motion_video
from vidray.cli.main import main
from vidray.scoring.predictor import Predictor
from vidray.types import Limits
from vidray.video.views import decode_views

pytestmark = pytest.mark.usefixtures("one_thread")

VIDEO = "video.mp4"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as vidray leaves them: VideoMAE and X3D trained, MoViNet and VideoPrism never. A video lies in each."""
    folder = tmp_path_factory.mktemp("cards")
    make_labelled_bucket(folder / "videos", num_videos=2 * len(MOTIONS))
    starts = {"videomae": make_family(folder / "start", "videomae", labels=("a", "b")), "x3d": folder / "x3d"}
    assert main(["new", "x3d", "xs", str(starts["x3d"]), "--labels", str(len(MOTIONS))]) == 0
    made = {name: folder / f"{name}-trained" for name in starts}
    for name, start in starts.items():
        places = ["--source", str(folder / "videos"), "--model", str(start), "--output", str(made[name])]
        flags = ["--epochs", "1", "--validation-share", "0.4", "--device", "cpu", "--no-flip"]
        assert main(["train", *places, *flags]) == 0
    made["movinet"] = folder / "movinet"
    assert main(["new", "MoViNet", "a0", str(made["movinet"]), "--labels", "3"]) == 0
    start = read_checkpoint(str(make_family(folder / "prism", "videoprism_vision_model", labels=("a", "b", "c"))))
    made["videoprism"] = folder / "videoprism"
    facts = {"training": {}, "title": "VideoPrism", "text": "Untrained."}
    write_new_checkpoint(load_model(start), start.view, made["videoprism"], **facts)
    for path in made.values():
        (path / VIDEO).write_bytes(motion_video("left", seed=99, num_frames=60))
    return made


def python_of(folder: Path) -> str:
    """The one block of Python in the README."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return block


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def scores_of(printed: str) -> dict[str, float]:
    """Of the last line, [{"label": …, "score": …}, …]."""
    return {entry["label"]: entry["score"] for entry in ast.literal_eval(printed.strip().splitlines()[-1])}


@pytest.mark.parametrize("name", ["videomae", "x3d", "movinet", "videoprism"])
def test_python_in_the_readme_scores_as_vidray_does(name: str, checkpoints: dict[str, Path]) -> None:
    folder = checkpoints[name]
    done = run(folder, sys.executable, "-c", python_of(folder))
    assert done.returncode == 0, done.stderr
    checkpoint = read_checkpoint(str(folder))
    view = dataclasses.replace(checkpoint.view, span="full", num_clips=1, num_crops=1)
    views, _ = decode_views((folder / VIDEO).read_bytes(), view=view, limits=Limits())
    expected = dict(Predictor(checkpoint, view=view).predict([views])[0].top_k)
    assert scores_of(done.stdout) == pytest.approx(expected, abs=0.02)  # frames a little apart, another resize


def test_transformers_reads_the_file_itself_just_where_the_readme_says(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["x3d"]
    (call,) = re.findall(r'`(classify\("video\.mp4".*?\))`', (folder / "README.md").read_text())
    code = python_of(folder)
    done = run(folder, sys.executable, "-c", f"{code}\nprint({call})")
    if is_torchcodec_usable("video"):
        assert done.returncode == 0, done.stderr
        from_frames, from_file = done.stdout.strip().splitlines()[-2:]
        assert scores_of(from_file) == pytest.approx(scores_of(from_frames), abs=0.02)
    else:
        assert "torchcodec" in done.stderr.strip().splitlines()[-1]


def test_command_in_the_readme_scores(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """With folders of this machine in the place of the buckets."""
    folder = checkpoints["x3d"]
    (line,) = re.findall(r"^    (vidray score .*)$", (folder / "README.md").read_text(), re.MULTILINE)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "0.mp4").write_bytes(make_video(num_frames=20))
    places = {"s3://bucket/videos": str(tmp_path / "videos"), "s3://bucket/scores": str(tmp_path / "out")}
    program, *arguments = (places.get(word, word) for word in shlex.split(line))
    done = run(folder, os.path.join(os.path.dirname(sys.executable), program), *arguments)
    assert done.returncode == 0, done.stderr
    (row,) = runs.read_rows(tmp_path / "out")
    assert row["label"] in MOTIONS


def test_readme_of_a_trained_one_says_how_good_it_is_and_where_it_comes_from(checkpoints: dict[str, Path]) -> None:
    text = (checkpoints["x3d"] / "README.md").read_text()
    assert "| accuracy |" in text
    assert re.search(r'^base_model: ".*x3d"$', text, re.MULTILINE)
    assert all(f"- {label}\n" in text for label in MOTIONS)


def test_readme_of_an_untrained_one_says_so(checkpoints: dict[str, Path]) -> None:
    text = (checkpoints["movinet"] / "README.md").read_text()
    assert "# MoViNet a0-base, untrained\n" in text
    assert "base_model" not in text
