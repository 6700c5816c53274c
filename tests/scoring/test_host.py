"""A predictor in another process scores as one in this process does, and its loss loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vidray.errors import UsageError
from vidray.scoring import host
from vidray.scoring.config import CPUS_PER_PREDICTOR, ScoreConfig
from vidray.scoring.host import Host, HostedPredictor
from vidray.scoring.job import ScoreJob
from vidray.scoring.predictor import Predictor
from vidray.scoring.runners.ray import Layout, Pool
from vidray.types import Scores, ViewConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(str(make_videomae(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def settings(checkpoint: Checkpoint) -> dict:
    return {"checkpoint": checkpoint, "view": checkpoint.view, "device": "cpu", "num_threads": 2}


@pytest.fixture(scope="module")
def own(settings: dict) -> Predictor:
    return Predictor(**settings)


@pytest.fixture
def started(settings: dict) -> Iterator[Host]:
    with contextlib.closing(Host(**settings)) as started:
        yield started


def make_views(view: ViewConfig, *, num_views: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_views, *view.views_shape[1:]), dtype=np.uint8)


def must_not_be_called() -> Predictor:
    raise AssertionError("the host is there")


def same(left: list[Scores], right: list[Scores]) -> bool:
    """The batches are others, so the last bits may be."""
    pairs = list(zip(left, right, strict=True))
    return all(np.allclose(a.logits, b.logits, atol=1e-5) and a.top_k[0][0] == b.top_k[0][0] for a, b in pairs)


def test_a_host_scores_as_a_predictor_here_does_from_any_thread_and_blocks_of_any_size(checkpoint, own, started):
    hosted = HostedPredictor(started.address, make_own=must_not_be_called)
    blocks = [
        [make_views(checkpoint.view, num_views=1 + (seed + n) % 3, seed=10 * seed + n) for n in range(1 + 7 * seed % 5)]
        for seed in range(12)
    ]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(hosted.predict, blocks))
    assert all(same(scores, own.predict(block)) for scores, block in zip(found, blocks, strict=True))
    assert hosted.predict([]) == []


def test_an_error_in_the_host_is_raised_here_and_the_next_block_is_fine(checkpoint, own, started):
    hosted = HostedPredictor(started.address, make_own=must_not_be_called)
    with pytest.raises(ValueError, match="views must be uint8"):
        hosted.predict([np.zeros((1, 1, 2, 2, 3), np.uint8)])
    views = [make_views(checkpoint.view, num_views=2, seed=1)]
    assert same(hosted.predict(views), own.predict(views))


def test_a_host_that_cannot_make_its_predictor_says_why(settings):
    with (
        contextlib.closing(Host(**settings | {"precision": "fp16"})) as started,
        pytest.raises(UsageError, match="precision fp16 needs a GPU"),
    ):
        HostedPredictor(started.address, make_own=must_not_be_called)


@pytest.mark.parametrize("moment", ["before", "between"])
def test_when_a_host_is_lost_a_predictor_here_goes_on(checkpoint, own, started, moment):
    views = [make_views(checkpoint.view, num_views=2, seed=2)]
    if moment == "before":
        started.close()
    hosted = HostedPredictor(started.address, make_own=lambda: own)
    if moment == "between":
        assert same(hosted.predict(views), own.predict(views))
        os.kill(started.pid, signal.SIGKILL)
    assert same(hosted.predict(views), own.predict(views))
    assert hosted._own is own


def test_a_host_ends_with_the_process_that_started_it_and_leaves_nothing(tmp_path):
    script = (
        "import time; from vidray.scoring.host import Host; host = Host(); print(host.pid, host.address, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{script}; time.sleep(600)"], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        pid, address = driver.stdout.readline().split()
        child = psutil.Process(int(pid))
        driver.kill()
    child.wait(timeout=60)
    runs.wait_until(lambda: not Path(address).parent.exists(), what="the end of the folder")


def test_a_host_is_as_urgent_as_the_actor_that_asks_it(started):
    script = (
        "import os, sys; from vidray.scoring.host import HostedPredictor; os.nice(5); "
        "HostedPredictor(sys.argv[1], make_own=None)"
    )
    expected = os.getpriority(os.PRIO_PROCESS, 0) + 5
    subprocess.run([sys.executable, "-c", script, started.address], check=True, timeout=60)
    runs.wait_until(lambda: set(nices(started.pid)) == {expected}, what="all threads to be less urgent")


def nices(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield os.getpriority(os.PRIO_PROCESS, int(task.name))


def test_a_host_that_failed_for_another_reason_is_replaced_by_a_predictor_here(settings, own):
    with contextlib.closing(Host(**settings | {"batch_size": "many"})) as started:
        assert HostedPredictor(started.address, make_own=lambda: own)._own is own


def test_a_long_name_of_the_temporary_folder_is_no_obstacle(settings, tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with contextlib.closing(Host(**settings)) as started:
        HostedPredictor(started.address, make_own=must_not_be_called)


def test_it_is_of_use_only_where_ray_is_started_here_and_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(host, "_GPUS", (str(tmp_path / "none"),))
    assert host.is_useful(device="cpu", ray_address=None)
    assert host.is_useful(device="auto", ray_address="local")
    assert not host.is_useful(device="cuda", ray_address=None)
    assert not host.is_useful(device="cpu", ray_address="127.0.0.1:6379")
    monkeypatch.setattr(host, "_GPUS", (str(tmp_path),))
    assert host.is_useful(device="cpu", ray_address=None)
    assert not host.is_useful(device="auto", ray_address=None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not host.is_useful(device="cpu", ray_address=None)


def test_a_host_that_the_layout_does_not_use_is_closed(tmp_path, checkpoint, started):
    config = ScoreConfig(source=(str(tmp_path),), model=checkpoint.location, output=str(tmp_path / "out"))
    job = ScoreJob(config)
    pool = Pool(min_size=1, max_size=1, num_cpus=0.4)
    fits = Layout(decode=pool, predict=pool, rows_per_block=1, threads_per_predictor=len(os.sched_getaffinity(0)))
    job._host = started
    assert job._host_address(fits) == started.address
    assert job._host_address(dataclasses.replace(fits, threads_per_predictor=99)) is None
    assert not psutil.pid_exists(started.pid)


def busy_host(driver: int) -> psutil.Process | None:
    """The host of a job, once it has been given views."""
    for child in psutil.Process(driver).children():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                "vidray.scoring.host" in child.cmdline()
                and "vidray-host-views" in Path(f"/proc/{child.pid}/maps").read_text()
            ):
                return child
    return None


@pytest.mark.skipif(len(os.sched_getaffinity(0)) >= 2 * CPUS_PER_PREDICTOR, reason="such a machine has no host")
def test_a_job_whose_host_is_killed_while_it_scores_scores_each_video_once(tmp_path):
    model = make_videomae(tmp_path / "model")
    uris = runs.make_bucket(tmp_path / "videos", num_videos=200)
    flags = (*runs.TINY_VIEWS, "--rows-per-part", "8", "--device", "cpu")
    process = runs.start(runs.command(source=tmp_path / "videos", model=model, output=tmp_path / "out", flags=flags))
    runs.wait_until(lambda: busy_host(process.pid) is not None, what="a host with views")
    victim = busy_host(process.pid)
    assert victim is not None
    victim.kill()
    assert len(runs.parts(tmp_path / "out")) < 20, "the run was over too soon to show anything"
    assert "success" in runs.finish(process)
    rows = runs.assert_each_once(tmp_path / "out", uris)
    assert {row["status"] for row in rows} == {"ok"}
