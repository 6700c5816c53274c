"""`vidray score --notify` tells how a command ended, and nothing that a webhook does changes the night."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_server import free_port
from tests.support.webhook_server import webhook_server
from vidray.cli.main import main
from vidray.scoring.notify import notify
from vidray.scoring.verdict import Verdict


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


@pytest.fixture
def night(tmp_path, model) -> list[str]:
    runs.make_bucket(tmp_path / "videos", num_videos=1)
    places = ["--source", str(tmp_path / "videos"), "--model", str(model), "--output", str(tmp_path / "out")]
    return ["score", *places, *runs.TINY_VIEWS, "--runner", "local", "--device", "cpu"]


def test_each_webhook_is_told_how_the_night_was_and_the_verdict_is_the_last_line_still(night, tmp_path, capsys):
    gone = f"http://127.0.0.1:{free_port()}/SECRET"
    with webhook_server() as first, webhook_server() as second:
        assert main([*night, "--notify", first.url, "--notify", gone, "--notify", second.url]) == 0
    out, err = capsys.readouterr()
    assert first.bodies == second.bodies
    (body,) = first.bodies
    place = tmp_path / "out"
    assert body["text"] == f"vidray: success (exit code 0). {place}: 1 listed, 1 scored, 0 failed."
    assert json.loads(out.splitlines()[-1])["outcome"] == body["facts"]["outcome"] == "success"
    assert "vidray: 127.0.0.1 was not notified: Connection refused (3 tries)" in err.splitlines()
    files = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    assert all(b"SECRET" not in data for data in [*files, out.encode(), err.encode()])


def test_a_command_that_could_not_begin_is_told_of_too_with_a_text_of_ones_own(night, capsys):
    with webhook_server() as hook:
        more = ["--model", "/nowhere/model", "--notify-text", "{exit_code}: {message}", "--notify", hook.url]
        assert main([*night, *more]) == 2
        assert main([*night, "--dry-run", "--notify", hook.url]) == 0
    (body,) = hook.bodies
    assert body["text"].startswith("2: ")
    assert "/nowhere/model" in body["text"]
    capsys.readouterr()


def test_a_command_that_found_another_run_at_work_tells_nobody(capsys):
    with webhook_server() as hook:
        notify([hook.url], "{outcome}", Verdict(exit_code=5), "out", on_problem=print)
        assert hook.bodies == []
        notify([hook.url], "{outcome}", Verdict(exit_code=143), "https://u:SECRET@host/out", on_problem=print)
    assert "SECRET" not in json.dumps(hook.bodies)
    assert hook.bodies[0]["text"] == "interrupted"
