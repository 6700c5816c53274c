"""A Ray that was started for one run comes without processes that have nothing to do; others' Rays are left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray import ray_helpers
from vidray.ray_helpers import few_processes, helpers_here

DAEMONS = {"monitor.py", "log_monitor.py", "dashboard.py", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}
HELPERS = {"AutoscalingCoordinator", "ActorLocationTracker", "datasets_stats_actor"}

EXECUTE = """
import contextlib, sys
import numpy as np, pyarrow as pa, ray
from tests.support.faulty_stages import Counts, Same
from vidray.cluster import connected
with connected("local") as is_own:
    assert is_own
    with connected("local") as is_own:
        assert not is_own, "it was there already"
    from vidray import ray_helpers
    from vidray.scoring.runners import ray as pipeline
    pool = pipeline.Pool(min_size=1, max_size=1, num_cpus=0.4)
    layout = pipeline.Layout(decode=pool, predict=pool, rows_per_block=8, threads_per_predictor=1)
    with ray_helpers.helpers_here() if sys.argv[1] == "here" else contextlib.nullcontext():
        tables = list(pipeline.stream(
            pa.table({"row": np.arange(100)}), decode=pipeline.Stage(cls=Counts, kwargs={}),
            predict=pipeline.Stage(cls=Same, kwargs={}), layout=layout, stall_timeout=60,
        ))
    assert sorted(row for table in tables for row in table["row"].to_pylist()) == list(range(100))
    print(*(actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)))
"""


def run_alone(program: str, argument: str) -> str:
    """What a program prints that has a process, and a Ray, of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, argument],
        cwd=runs.ROOT,
        env=runs.clean_environment(PYTHONPATH=str(runs.ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(("where", "actors"), [("here", set()), ("in actors", HELPERS)])
def test_an_execution_has_its_helpers_in_the_driver_or_else_in_actors(where: str, actors: set[str]) -> None:
    assert set(run_alone(EXECUTE, where).split()) == actors


START = """
import os, sys
import psutil
from vidray import ray_helpers
from vidray.cluster import connected
if "other version" in sys.argv[1]:
    ray_helpers.TRIED_WITH = "2.59."
if "hook" in sys.argv[1]:
    os.environ["RAY_RUNTIME_ENV_HOOK"] = "copy.copy"
with connected("local", runtime_envs="environments" in sys.argv[1]):
    for process in psutil.Process().children(recursive=True):
        print(*(word.rpartition("/")[2] for word in process.cmdline() if word.endswith(".py") or "Agent" in word))
"""


@pytest.mark.parametrize(
    ("ray_is", "daemons"),
    [
        ("this version", set()),
        ("this version, with environments", {"ray::RuntimeEnvAgent"}),
        ("this version, with a hook of the user's", {"ray::RuntimeEnvAgent"}),
        ("other version", DAEMONS),
    ],
)
def test_a_ray_of_its_own_starts_without_daemons_that_have_nothing_to_do(ray_is: str, daemons: set[str]) -> None:
    assert set(run_alone(START, ray_is).split()) & DAEMONS == daemons


ENVIRONMENT = """
import os, sys
import ray
from vidray.cluster import connected
with connected("local", runtime_envs=True):
    get = ray.remote(lambda: os.environ["COLOUR"])
    print(ray.get(get.options(runtime_env={"env_vars": {"COLOUR": sys.argv[1]}}).remote()))
"""


def test_who_asks_for_runtime_environments_gets_them() -> None:
    assert run_alone(ENVIRONMENT, "green").strip() == "green"


KILL_RAYLET = """
import os
import psutil
from vidray.cluster import connected
with connected("local", runtime_envs=False):
    family = psutil.Process().children(recursive=True)
    (raylet,) = (process for process in family if process.name() == "raylet")
    stand_ins = [process for process in raylet.children() if process.name() == "cat"]
    raylet.kill()
    gone, alive = psutil.wait_procs(stand_ins, timeout=30)
    print(len(gone), len(alive), flush=True)
    os._exit(0)
"""


def test_what_stands_in_for_agents_ends_with_a_killed_raylet() -> None:
    assert run_alone(KILL_RAYLET, "").split() == ["2", "0"]


def test_a_job_alone_on_its_machine_starts_two_actors_and_no_helpers(tmp_path: Path) -> None:
    uris = runs.make_bucket(tmp_path / "videos", num_videos=8)
    model, output = make_videomae(tmp_path / "model"), tmp_path / "out"
    process = runs.start(runs.command(source=tmp_path / "videos", model=model, output=output))
    names: set[str] = set()
    while process.poll() is None:
        names |= {name for child in psutil.Process(process.pid).children(recursive=True) if (name := title(child))}
    runs.finish(process)
    runs.assert_each_once(output, uris)
    actors = {name for name in names if "IDLE" not in name}
    assert {name.partition(")")[0] for name in actors} == {
        "ray::MapWorker(MapBatches(DecodeStage",
        "ray::MapWorker(MapBatches(PredictStage",
    }


def title(process: psutil.Process) -> str | None:
    """What a Ray worker calls itself; None for other processes, and those that are gone."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    return words[0] if words and words[0].startswith("ray::") else None


def test_afterwards_ray_is_as_it_was(local_ray: None) -> None:
    from ray._private import services
    from ray._private.node import Node
    from ray.data._internal import stats

    before = stats.get_or_create_stats_actor
    with helpers_here():
        assert stats.get_or_create_stats_actor is not before
    assert stats.get_or_create_stats_actor is before

    before = Node.start_monitor
    start_process = services.start_ray_process
    with few_processes(runtime_envs=False):
        assert Node.start_monitor is not before
        assert services.start_ray_process is not start_process
    assert Node.start_monitor is before
    assert services.start_ray_process is start_process


def test_other_versions_of_ray_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data._internal import stats

    monkeypatch.setattr(ray_helpers, "TRIED_WITH", "2.59.")
    before = stats.get_or_create_stats_actor
    with helpers_here():
        assert stats.get_or_create_stats_actor is before


def test_the_version_that_the_tests_run_with_is_one_that_was_tried() -> None:
    """Where this fails, Ray was raised: if the other tests here pass with it, raise ``TRIED_WITH`` too."""
    assert ray.__version__.startswith(ray_helpers.TRIED_WITH)
