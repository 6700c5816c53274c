"""Training reads through signed URLs, keeps no signature, and goes on with new ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.checkpoints import make_videomae
from tests.support.http_server import FileServer
from vidray.cli.demo import motion_video
from vidray.cli.main import main as cli
from vidray.storage import redaction
from vidray.training.config import TrainConfig

NUM_VIDEOS = 16
FLAGS = ["--epochs", "1", "--global-batch-size", "4", "--views", "1x1", "--span", "full", "--no-flip"]


@pytest.mark.parametrize("parameter", ["token", "key"])
def test_a_run_is_resumed_with_new_signatures_and_keeps_none(parameter, tmp_path, monkeypatch, capfd, one_thread):
    """The first attempt ends because its signature has expired; ``key`` is secret only because a flag says so."""
    monkeypatch.setattr(redaction, "_extra", frozenset())
    model, output = make_videomae(tmp_path / "model"), tmp_path / "out"
    (tmp_path / "videos").mkdir()
    for number in range(NUM_VIDEOS):
        video = motion_video(("left", "right")[number % 2], seed=number, num_frames=8)
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(video)
    arguments = ["train", "--source", str(tmp_path / "list.csv"), "--model", str(model), "--output", str(output)]
    arguments += [*FLAGS, "--secret-parameters", "key"]
    with FileServer(tmp_path / "videos") as server:
        for secret, code in (("5ec2e7old", 3), ("5ec2e7new", 0)):
            write_list(tmp_path / "list.csv", f"{server.url}/{{}}.mp4?{parameter}={secret}")
            server.refused |= {f"/{number}.mp4?{parameter}=5ec2e7old" for number in range(NUM_VIDEOS)}
            assert cli(arguments) == code
            assert_no_secret(output)
    assert (output / "vidray.json").exists()
    (tmp_path / "list.csv").unlink()
    assert cli(arguments) == 0, "a finished run needs no list"
    assert "5ec2e7" not in "".join(capfd.readouterr())


def write_list(path: Path, uri: str) -> None:
    rows = [f"{uri.format(number)},{('left', 'right')[number % 2]},{number},e" for number in range(NUM_VIDEOS)]
    path.write_text("uri,label,group,etag\n" + "\n".join(rows) + "\n")


def assert_no_secret(output: Path) -> None:
    for path in output.rglob("*"):
        if path.suffix == ".parquet":
            assert "5ec2e7" not in str(pq.read_table(path).to_pylist()), path
        elif path.is_file():
            assert b"5ec2e7" not in path.read_bytes(), path


def test_a_password_in_the_video_root_is_no_setting(tmp_path) -> None:
    places = {"source": ("list.csv",), "model": "m", "output": str(tmp_path)}
    settings = TrainConfig(**places, video_root="https://me:5ec2e7@host/videos/").settings()
    assert settings["video_root"] == "https://host/videos/"
