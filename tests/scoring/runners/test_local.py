"""The local runner: what its workers can do to rows, and that no process of theirs is ever left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_stages import ByRow, Counts, Refuses, Same, Tells
from tests.support.runs import wait_until
from vidray import cpu_tuning
from vidray.errors import RunError, UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.output import ROW
from vidray.scoring.runners import local
from vidray.scoring.runners.base import Stages, StageSpec
from vidray.scoring.runners.local import LocalRunner, make_layout
from vidray.types import Status, ViewConfig

VIEW = ViewConfig(num_frames=16, size=224, num_clips=1)
STREAM = ViewConfig(num_frames=8, size=172, num_clips=1, span="stream")


def config(**more) -> ScoreConfig:
    return ScoreConfig(source=("s",), model="m", output="o", **{"device": "cpu", **more})


def spec(cls: type, **kwargs: object) -> StageSpec:
    return StageSpec(cls=cls, kwargs=kwargs)


@pytest.fixture
def state(tmp_path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def runners() -> Iterator[list[LocalRunner]]:
    made: list[LocalRunner] = []
    yield made
    for runner in made:
        runner.close()


def run_of(runners: list[LocalRunner], predict: StageSpec, *, decode: StageSpec | None = None, **flags) -> LocalRunner:
    stages = Stages(decode=decode or spec(Same), predict=predict)
    runners.append(LocalRunner(config(**flags), VIEW, lambda num_threads: stages))
    return runners[-1]


def plan(num_rows: int) -> pa.Table:
    return pa.table({ROW: np.arange(num_rows)})


def rows_of(tables) -> list[int]:
    return [row for table in tables for row in table[ROW].to_pylist()]


# -- rows --------------------------------------------------------------------------------------------------------------


def test_every_row_comes_back_once_and_blocks_are_small_at_first_and_never_large(runners):
    tables = list(run_of(runners, spec(Same), decode=spec(Counts)).run(plan(500)))
    assert sorted(rows_of(tables)) == list(range(500))
    sizes = {row: n for table in tables for row, n in zip(*(table[c].to_pylist() for c in (ROW, "n")), strict=True)}
    assert sizes[0] == 1, "the network has nothing to do until the first is decoded"
    assert max(sizes.values()) == 8
    assert sizes[499] == 1, "all decoders end together"


def test_the_workers_are_kept_for_the_next_rows(runners):
    runner = run_of(runners, spec(Tells))
    first, second = ({pid for table in runner.run(plan(9)) for pid in table["pid"].to_pylist()} for _ in range(2))
    assert first == second
    assert len(first) == 1


def test_several_workers_share_the_rows_evenly(runners):
    runner = run_of(runners, spec(Tells, seconds=0.005), predictors="2")
    pids = [pid for table in runner.run(plan(400)) for pid in table["pid"].to_pylist()]
    assert len(set(pids)) == 2
    assert all(pids.count(pid) > 60 for pid in set(pids))


def test_libraries_find_their_settings_in_the_environment_when_a_worker_starts(runners, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (table,) = run_of(runners, spec(Tells, variable="OMP_WAIT_POLICY")).run(plan(1))
    assert table["told"].to_pylist() == ["PASSIVE"]


def test_each_worker_sees_its_own_gpu(runners, monkeypatch):
    monkeypatch.setattr(local, "find_gpus", lambda: ("2", "GPU-5a"))
    runner = run_of(runners, spec(Tells, variable="CUDA_VISIBLE_DEVICES"), device="cuda")
    assert {told for table in runner.run(plan(100)) for told in table["told"].to_pylist()} == {"2", "GPU-5a"}


def test_what_makes_computing_on_cpus_fast_is_not_set_for_workers_with_a_gpu(runners, monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(local, "find_gpus", lambda: ("0",))
    told = {}
    for device in ("cpu", "cuda"):
        (table,) = run_of(runners, spec(Tells, variable="MALLOC_ARENA_MAX"), device=device).run(plan(1))
        (told[device],) = table["told"].to_pylist()
    assert told == {"cpu": "1", "cuda": None}


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "why"),
    [
        ("is killed", Status.OUT_OF_MEMORY, "killed from outside"),
        ("raises", Status.MODEL_ERROR, "ValueError: a device that is gone"),
        ("exits", Status.MODEL_ERROR, "ended with code 7; it said: Fatal: something went wrong"),
        ("hangs", Status.MODEL_ERROR, "gave no answer"),
        ("drops a row", Status.MODEL_ERROR, "gave 0 rows for 1"),
    ],
)
def test_a_row_that_kills_its_worker_takes_others_along_once_and_then_only_itself(runners, state, fault, status, why):
    faulty = spec(ByRow, fault=fault, rows=[30], state=str(state))
    # Long enough for a worker to start on a busy machine.
    runner = run_of(runners, faulty, stall_timeout_seconds=7.0 if fault == "hangs" else None)
    came = rows_of(runner.run(plan(60)))
    assert len(came) == len(set(came))
    lost = sorted(set(range(60)) - set(came))
    assert 30 in lost
    again = rows_of(runner.run(pa.table({ROW: lost}), alone=True))
    assert again == [row for row in lost if row != 30]
    assert runner.why_lost(30).status is status
    assert why in runner.why_lost(30).message


def test_a_worker_killed_from_outside_loses_only_what_it_had(runners, state):
    faulty = spec(ByRow, fault="is killed", rows=list(range(1000)), state=str(state), times=0)
    runner = run_of(runners, faulty)
    tables = runner.run(plan(5000))
    victim = next(tables)["pid"][0].as_py()
    os.kill(victim, signal.SIGKILL)
    came = rows_of(tables)
    lost = set(range(5000)) - set(came) - {0}
    assert 0 < len(lost) <= 200
    assert sorted(rows_of(runner.run(pa.table({ROW: sorted(lost)}), alone=True))) == sorted(lost)


def test_workers_that_die_one_after_the_other_end_the_run(runners, state):
    faulty = spec(ByRow, fault="raises", rows=list(range(5000)), state=str(state))
    with pytest.raises(RunError, match=r"10 workers died one after the other .* a device that is gone"):
        list(run_of(runners, faulty).run(plan(5000)))


@pytest.mark.parametrize("error", [UsageError, RunError])
@pytest.mark.parametrize("stage", ["decode", "predict"])
def test_what_no_other_worker_could_do_either_is_raised(runners, error, stage):
    stages = {"decode": spec(Same), "predict": spec(Same), stage: spec(Refuses, error=error)}
    with pytest.raises(error, match="no such thing"):
        list(run_of(runners, stages["predict"], decode=stages["decode"]).run(plan(3)))


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_run_that_is_given_up_leaves_no_process(runners):
    runner = run_of(runners, spec(Tells))
    tables = runner.run(plan(100_000))
    pid = next(tables)["pid"][0].as_py()
    tables.close()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL]
)
def test_no_process_outlives_the_driver(tmp_path, signum):
    runs.make_bucket(tmp_path / "videos", num_videos=400)
    model, output = make_videomae(tmp_path / "model"), tmp_path / "out"
    flags = (*runs.TINY_VIEWS, "--rows-per-part", "8", "--runner", "local")
    process = runs.start(runs.command(source=tmp_path / "videos", model=model, output=output, flags=flags))
    wait_until(lambda: bool(runs.parts(output)) or process.poll() is not None, what="a part")
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 2, "a worker and its sandboxes"
    process.send_signal(signum)
    process.communicate(timeout=60)
    wait_until(lambda: not any(map(is_running, started)), timeout=20, what="the end of all processes")


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_driver_imports_neither_torch_nor_ray(tmp_path):
    runs.make_bucket(tmp_path / "videos", num_videos=2)
    script = (
        "import sys; from vidray.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'ray', 'transformers', 'av'} & set(sys.modules)))"
    )
    places = ["--source", str(tmp_path / "videos"), "--model", str(make_videomae(tmp_path / "model"))]
    arguments = ["score", *places, "--output", str(tmp_path / "out"), *runs.TINY_VIEWS]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=runs.ROOT,
        env=runs.clean_environment(),
    )
    assert done.stdout.splitlines()[-1] == "0 []"


# -- layout ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "num_cpus", "num_gpus", "gpus", "threads", "decoders"),
    [
        ({}, 1, 0, (None,), 1, 1),
        ({}, 2, 0, (None,), 2, 2),
        ({}, 16, 0, (None, None), 8, 8),
        ({"predictors": "4"}, 16, 0, (None,) * 4, 4, 4),
        ({"predictors": "1:4", "decoders": "6"}, 16, 0, (None, None), 8, 3),
        ({"device": "auto"}, 16, 0, (None, None), 8, 8),
        ({"device": "auto"}, 16, 2, ("0", "1"), None, 8),
        ({"device": "cuda", "predictors": "1:8"}, 16, 2, ("0", "1"), None, 8),
        ({"device": "cuda", "predictors": "1", "decoders": "4"}, 16, 2, ("0",), None, 4),
        ({"device": "cpu"}, 16, 2, (None, None), 8, 8),
    ],
)
def test_the_machine_is_shared_out(flags, num_cpus, num_gpus, gpus, threads, decoders):
    names = tuple(map(str, range(num_gpus)))
    layout = make_layout(config(**flags), VIEW, num_cpus=num_cpus, gpus=names, num_rows=1000)
    assert (layout.gpus, layout.threads_per_worker, layout.decoders_per_worker) == (gpus, threads, decoders)
    assert layout.max_rows_per_block == 8
    assert layout.max_rows_in_flight >= 8 * decoders


def test_there_are_no_more_workers_than_videos():
    assert make_layout(config(predictors="4"), VIEW, num_cpus=32, gpus=(), num_rows=2).num_workers == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"device": "cuda"}, "this machine has 0 GPUs, and 1 are needed"),
        ({"device": "auto", "precision": "fp16"}, "--precision fp16 needs a GPU"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        make_layout(config(**flags), VIEW, num_cpus=2, gpus=(), num_rows=10)


def test_streamed_videos_are_dealt_one_by_one_and_one_more_waits_for_each():
    layout = make_layout(config(streaming=True), STREAM, num_cpus=4, gpus=(), num_rows=100)
    assert (layout.num_workers, layout.num_predict_calls, layout.max_rows_per_block) == (1, 8, 1)
    assert layout.max_rows_in_flight == 16


@pytest.mark.parametrize(
    ("content", "expected"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), (None, 8)]
)
def test_a_containers_quota_counts_as_so_many_cpus(tmp_path, monkeypatch, content, expected):
    quota = tmp_path / "cpu.max"
    if content is not None:
        quota.write_text(content + "\n")
    monkeypatch.setattr(cpu_tuning, "_QUOTA_FILE", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cpu_tuning.num_cpus() == expected
