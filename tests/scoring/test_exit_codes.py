"""Each exit code of `vidray score`, in the situation that it stands for; and the verdict is the last line each time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.test_lease import HOLD
from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_server import free_port
from vidray.cli.main import main
from vidray.errors import EXIT_CODES


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


@pytest.fixture
def night(tmp_path, model) -> list[str]:
    """The command for two good videos."""
    runs.make_bucket(tmp_path / "videos", num_videos=2)
    command = runs.command(source=tmp_path / "videos", model=model, output=tmp_path / "out")
    return [*command, "--runner", "local", "--device", "cpu"]


def ended(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_0_after_a_good_night_and_3_once_too_many_videos_are_bad(night, tmp_path, capsys):
    arguments = ["score", *night[2:]]
    assert main(arguments) == 0
    assert (verdict := ended(capsys))["outcome"] == "success"
    assert verdict["num_scored"] == 2
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video")
    assert main(arguments) == 3
    assert (verdict := ended(capsys))["outcome"] == "too_many_failures"
    assert (verdict["exit_code"], verdict["num_failed"]) == (3, 1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--modle", "x"], "which is no flag"),
        (["--views", "7"], "--views: got '7'"),
        (["--device", "tpu"], "the command line is wrong"),
        (["--model", "/nowhere/model"], "/nowhere/model"),
        (["--source", "/nowhere/videos"], "/nowhere/videos"),
    ],
)
def test_2_wherever_the_mistake_is_found(night, more, message, capsys):
    try:
        code = main(["score", *night[2:], *more])
    except SystemExit as exit:  # of the parser
        code = exit.code
    assert code == 2
    assert (verdict := ended(capsys))["exit_code"] == 2
    assert verdict["outcome"] == "usage_error"
    assert message in verdict["message"]


def test_1_when_the_store_is_away(night):
    place = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_MAX_ATTEMPTS": "1"}
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    environment = runs.clean_environment(**place, **keys)
    more = ["--output", "s3://bucket/scores", "--store-deadline-seconds", "0"]
    done = subprocess.run([*night, *more], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (verdict := json.loads(done.stdout.splitlines()[-1]))["exit_code"] == 1
    assert "s3://bucket/scores" in verdict["message"]


def test_5_while_another_run_works_and_with_wait_the_night_comes_after_it(night, tmp_path, capsys):
    output = str(tmp_path / "out")
    holder = [sys.executable, "-c", HOLD, output]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=runs.ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert main(["score", *night[2:]]) == 5
        assert (verdict := ended(capsys))["outcome"] == "output_in_use"
        assert f"process {other.pid}" in verdict["message"]
        waiting = runs.start([*night, "--wait"])
        assert waiting.stdout is not None
        while "waiting for its end" not in (line := waiting.stdout.readline()):
            assert line, "it ended without a word"
        assert runs.parts(tmp_path / "out") == []
        other.stdin.close()
        text = runs.finish(waiting)
    assert json.loads(text.splitlines()[-1])["num_scored"] == 2
    assert main(["status", "--output", output]) == 0, "the refused command says nothing of the night"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_130_and_143_when_it_is_interrupted_and_the_same_command_goes_on(night, tmp_path, number, code):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=60)
    process = runs.start([*night, "--rows-per-part", "4"])
    runs.wait_until(lambda: runs.parts(tmp_path / "out") != [], what="a part")
    os.kill(process.pid, number)
    text = runs.finish(process, code=code)
    assert "nothing is broken" in text
    (path,) = (tmp_path / "out" / "_verdicts").iterdir()
    assert json.loads(path.read_text())["exit_code"] == code
    assert text.splitlines()[-1] == path.read_text(), "after the message, where both streams are one"
    assert main(["status", "--output", str(tmp_path / "out")]) == code
    runs.run(night)
    runs.assert_each_once(tmp_path / "out", uris)


def test_the_help_and_the_runbook_have_the_same_table(capsys):
    page = (runs.ROOT / "docs" / "operate.md").read_text()
    table = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)}
    assert {code: meaning.replace("`", "") for code, meaning in table.items()} == EXIT_CODES
    main(["--help"])
    text = capsys.readouterr().out
    for code, meaning in EXIT_CODES.items():
        assert f"  {code:<11} {meaning}" in text
