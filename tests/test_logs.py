"""Events reach a program's own `logging`, and with `--log-format json` each is one line that says whose it is."""

from __future__ import annotations

import datetime
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_server import free_port
from vidray.progress import StepLine

SCORE = """
import logging, sys
import vidray
{configure}
vidray.score(sys.argv[1], sys.argv[2], sys.argv[3], views="1x1", span="full", runner="local", quiet={quiet})
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


def run(arguments: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    environment = runs.clean_environment(**more)
    return subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=runs.ROOT, env=environment)


def events_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_as_json_every_line_is_an_event_with_its_run_and_standard_output_is_the_verdict(tmp_path, model):
    runs.make_bucket(tmp_path / "videos", num_videos=3)
    command = runs.command(source=tmp_path / "videos", model=model, output=tmp_path / "out")
    done = run([*command, "--runner", "local", "--log-format", "json"])
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["num_scored"] for line in done.stdout.splitlines()] == [3]
    events = events_of(done.stderr)
    (folder,) = (tmp_path / "out" / "_runs").iterdir()
    for event in events:
        assert datetime.datetime.fromisoformat(event["time"]).utcoffset() == datetime.timedelta(0)
        assert (event["level"], event["node"], event["actor"]) == ("INFO", socket.gethostname(), "driver")
        assert event["logger"] == "vidray.scoring.job"
    messages = {event["message"].partition(":")[0]: event["run_id"] for event in events}
    assert messages["listing the sources"] is None, "there is no run yet"
    assert messages["starting the workers"] == folder.name
    assert messages[f"run {folder.name}"] == folder.name


def test_as_json_a_mistake_and_a_store_that_is_away_are_events_too(tmp_path, model):
    command = runs.command(source="/nowhere", model=model, output=tmp_path / "out")
    done = run([*command, "--runner", "local", "--log-format", "json"])
    assert done.returncode == 2
    assert events_of(done.stderr)[-1]["level"] == "ERROR"
    assert "/nowhere" in events_of(done.stderr)[-1]["message"]
    done = run([*command, "--log-format", "json", "--views", "7"])
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--views: got '7'" in events_of(done.stderr)[0]["message"]
    away = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_MAX_ATTEMPTS": "1", "AWS_ACCESS_KEY_ID": "a"}
    more = ["--output", "s3://bucket/x", "--store-deadline-seconds", "1", "--log-format", "json"]
    done = run([*command, *more], **away, AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1")
    events = events_of(done.stderr)
    assert [event["logger"] for event in events if event["level"] == "WARNING"] == ["vidray.storage.retry"]
    assert events[-1]["level"] == "ERROR"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_programs_own_configuration_gets_the_events_whether_or_not_they_are_shown(tmp_path, model, quiet):
    runs.make_bucket(tmp_path / "videos", num_videos=1)
    configure = f"logging.basicConfig(filename={str(tmp_path / 'log')!r}, level='INFO', format='%(name)s|%(message)s')"
    script = SCORE.format(configure=configure, quiet=quiet)
    done = run([sys.executable, "-c", script, str(tmp_path / "videos"), str(model), str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(line.startswith("vidray.progress|run ") for line in lines)
    assert ("1 videos in 1 parts" in done.stderr) is not quiet


def test_a_library_that_nobody_configured_prints_its_own_lines_and_no_events(tmp_path, model):
    runs.make_bucket(tmp_path / "videos", num_videos=1)
    places = [str(tmp_path / "videos"), str(model), str(tmp_path / "out")]
    done = run([sys.executable, "-c", SCORE.format(configure="", quiet=True), *places])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    script = "import logging, vidray; print(logging.getLogger().handlers, logging.getLogger('vidray').level)"
    assert run([sys.executable, "-c", script]).stdout == "[] 0\n"


def test_steps_of_a_training_carry_their_numbers(caplog, capsys):
    from vidray.progress import Progress

    with caplog.at_level(logging.INFO, logger="vidray"):
        Progress(logger="vidray.training").log(StepLine("step 3: loss 0.5", done=3, total=10))
    (record,) = caplog.records
    assert (record.name, record.getMessage(), record.numbers) == (
        "vidray.training",
        "step 3: loss 0.5",
        {"done": 3, "total": 10},
    )
    assert capsys.readouterr().err == "step 3: loss 0.5\n"
