"""What `vidray status` tells of an output, of real commands and of files made by hand, and its exit code."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.cli.main import main
from vidray.errors import RunError, UsageError
from vidray.results.status import OutputStatus, StatusConfig, format_status, read_status
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.verdict import Verdict, leave
from vidray.storage.store import Store

OLD = Path(__file__).parents[1] / "data" / "output-0.1.0"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "out"))


def status(output: object, **more) -> OutputStatus:
    return read_status(StatusConfig(output=str(output), **more))


def ended(store: Store, *, hours_ago: float, number: int = 0, **values) -> None:
    """A verdict of the past."""
    time = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours_ago)
    verdict = Verdict(**{"exit_code": 0, "time": time.isoformat(), **values})
    store.create(f"_verdicts/{time:%Y%m%dT%H%M%SZ}-{number:08d}.json", verdict.to_json().encode())


def lease(store: Store, *, seconds_ago: float | None, number: int = 7) -> None:
    """A lease of a process on another machine; None: of a version that recorded no times."""
    holder = {"host": "node-3", "pid": 12, "boot": "another boot", "started": "1", "id": "x"}
    if seconds_ago is not None:
        holder |= {"since": "2026-11-01T02:00:00+00:00"}
        holder |= {"time": (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)).isoformat()}
    store.create(f"_lease/{number:012d}.json", json.dumps(holder).encode())


def test_a_running_score_is_seen_at_work_and_how_far_it_is_and_a_killed_one_is_missed(tmp_path, model, capsys):
    uris, output = runs.make_bucket(tmp_path / "videos", num_videos=120), tmp_path / "out"
    assert status(output).exit_code == 1
    command = runs.command(source=tmp_path / "videos", model=model, output=output)
    process = runs.start([*command, "--rows-per-part", "4", "--device", "cpu", "--runner", "local"])
    try:
        runs.wait_until(lambda: len(runs.parts(output)) >= 2, what="two parts")
        os.kill(process.pid, signal.SIGSTOP)  # it gets no further while it is looked at
        seen = status(output)
        assert seen.is_at_work
        assert (seen.holder.pid, seen.silent_seconds < 30) == (process.pid, True)
        (run,) = seen.unfinished
        assert (run.num_planned, run.num_parts) == (120, 30)
        assert run.num_written == 4 * run.num_parts_written == 4 * len(runs.parts(output))
        text = format_status(seen)
        assert f"process {process.pid} on " in text
        assert f"{run.num_written} of 120 videos written ({run.num_parts_written} of 30 parts)" in text
    finally:
        process.kill()
        process.communicate()
    assert main(["status", "--output", str(output)]) == 1
    assert "no night has ended here yet" in capsys.readouterr().out
    ended(Store(str(output)), hours_ago=24)
    killed = status(output)
    assert (killed.exit_code, killed.is_at_work, killed.holder) == (1, False, None)
    assert f"run {run.run_id} was cut off without a verdict" in format_status(killed)

    runs.run([*command, "--device", "cpu", "--runner", "local"])
    runs.assert_each_once(output, uris)
    assert main(["status", "--output", str(output), "--max-age", "1h", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["problems"], told["unfinished"], told["holder"]) == (0, [], [], None)
    assert told["verdicts"][0]["num_listed"] == 120


def test_a_quiet_night_leaves_a_verdict_that_is_young_enough(tmp_path, model, capsys):
    runs.make_bucket(tmp_path / "videos", num_videos=1)
    output = tmp_path / "out"
    values = {"model": str(model), "output": str(output), "views": "1x1", "span": "full", "runner": "local"}
    config = ScoreConfig(source=(str(tmp_path / "videos"),), **values)
    ScoreJob(config).run()
    shutil.rmtree(output / "_verdicts")
    ended(Store(str(output)), hours_ago=30, num_listed=1, num_scored=1)
    assert main(["status", "--output", str(output), "--max-age", "26h"]) == 1
    assert "the last verdict is 30 h 00 min old, more than 26 h 00 min" in capsys.readouterr().out
    assert status(output).exit_code == 0, "without --max-age any age will do"
    assert ScoreJob(config).run() == [], "nothing is new"
    assert main(["status", "--output", str(output), "--max-age", "26h"]) == 0
    assert status(output).telling["num_done"] == 1


@pytest.mark.parametrize("code", [1, 2, 3, 4, 130, 143])
def test_the_exit_code_is_that_of_the_last_verdict(store, code):
    ended(store, hours_ago=30)
    ended(store, hours_ago=2, exit_code=code, message="why it is so")
    told = status(store.uri, max_age="1h")
    assert told.exit_code == code
    assert told.problems[0] == (code, "why it is so")
    assert len(told.problems) == 2, "it is too old, too"


def test_commands_that_say_nothing_of_a_night_are_shown_and_passed_over_however_many_they_are(store):
    ended(store, hours_ago=30, exit_code=3, message="too many failed")
    for number in range(40):
        ended(store, hours_ago=1, number=number, exit_code=5, message="another run is working")
    ended(store, hours_ago=0.5, limit=100)
    told = status(store.uri)
    assert (told.exit_code, told.telling["message"]) == (3, "too many failed")
    assert "--limit 100" in format_status(told)


@pytest.mark.parametrize(
    ("seconds_ago", "is_at_work", "text"),
    [
        (5, True, "process 12 on node-3 has worked on it for"),
        (3600, False, "nobody works on it: process 12 on node-3 gave no sign of life for 1 h 00 min"),
        (None, True, "process 12 on node-3 works on it, or died: its version records no times"),
    ],
)
def test_a_holder_on_another_machine_is_judged_by_its_last_sign_of_life(store, seconds_ago, is_at_work, text):
    ended(store, hours_ago=20)
    lease(store, seconds_ago=seconds_ago)
    told = status(store.uri)
    assert told.is_at_work is is_at_work
    assert text in format_status(told)


def test_an_output_of_version_0_1_tells_its_last_night_by_its_summary():
    told = status(OLD)
    assert (told.exit_code, told.holder, told.unfinished) == (0, None, ())
    assert (told.telling["num_listed"], told.telling["num_scored"]) == (5, 2)
    assert status(OLD, max_age="1s").exit_code == 1


@pytest.mark.parametrize("path", ["_verdicts/20261127T020000Z-0.json", "_lease/000000000009.json"])
@pytest.mark.parametrize("data", [b"", b"\x00torn", b"[]", b'{"outcome": "success"}'])
def test_a_damaged_object_is_one_line_that_names_it(store, path, data, capsys):
    store.create(path, data)
    assert main(["status", "--output", store.uri]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert store.uri_for(path) in line


def test_a_damaged_plan_is_one_line(store):
    store.create("_runs/r1/plan.parquet", b"PAR1 torn")
    with pytest.raises(RunError, match=r"the plan of run r1 in .* cannot be read"):
        status(store.uri)


@pytest.mark.parametrize("age", ["26", "h", "0h", "-1h", "1w", "1h30m"])
def test_an_age_that_is_none_is_refused(age):
    with pytest.raises(UsageError, match=r"--max-age: got .* allowed is .*26h"):
        StatusConfig(output="scores", max_age=age)


def test_it_is_asked_of_a_bucket(s3_bucket, capsys):
    store = Store(f"{s3_bucket}/scores")
    leave(store, Verdict(exit_code=3, message="2 of 3 videos failed"))
    lease(store, seconds_ago=1)
    assert main(["status", "--output", store.uri, "--max-age", "2d"]) == 3
    assert "2 of 3 videos failed" in capsys.readouterr().out


def test_it_loads_neither_ray_nor_torch(store):
    ended(store, hours_ago=1)
    script = (
        "import sys; from vidray.cli.main import main; code = main(sys.argv[1:]); "
        "print(sorted({'ray', 'torch', 'transformers', 'av'} & set(sys.modules))); sys.exit(code)"
    )
    text = runs.run([sys.executable, "-c", script, "status", "--output", store.uri], cwd=runs.ROOT)
    assert text.endswith("[]\n")
