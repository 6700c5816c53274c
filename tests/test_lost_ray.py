"""The processes of a Ray that a command has started itself are killed: it says so within seconds, and leaves none."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae

NOTICED_SECONDS = 30
"""Ray itself takes 60, and says nothing."""
TRAIN = ("--workers", "2", "--threads", "1", "--decoders", "1", "--epochs", "1000", "--save-every-steps", "1")


@pytest.mark.parametrize(
    ("job", "victim"),
    [
        ("score", "raylet"),
        pytest.param("score", "gcs_server", marks=pytest.mark.long),
        pytest.param("train", "gcs_server", marks=pytest.mark.long),
    ],
)
def test_a_command_whose_ray_dies_ends_with_one_line_and_leaves_no_process(tmp_path, job, victim):
    model = make_videomae(tmp_path / "model", initializer_range=0.02)
    output = tmp_path / "out"
    if job == "score":
        runs.make_bucket(tmp_path / "videos", num_videos=1000, num_frames=150)
        flags = (*runs.TINY_VIEWS, "--rows-per-part", "4", "--runner", "ray")
        reached = "predictions/run=*/part-*.parquet"
    else:
        runs.make_classes(tmp_path / "videos", num_videos=24)
        flags, reached = (*runs.TINY_VIEWS, *TRAIN, "--global-batch-size", "4"), "_train/state/*/COMMIT.json"
    command = runs.command(source=tmp_path / "videos", model=model, output=output, flags=flags)
    command[1] = str(runs.ROOT / "jobs" / f"{job}.py")
    process = runs.start(command)
    runs.wait_until(lambda: any(output.glob(reached)) or process.poll() is not None, what="the work")
    started = psutil.Process(process.pid).children(recursive=True)
    (killed,) = [child for child in started if child.name() == victim]
    os.kill(killed.pid, signal.SIGKILL)
    since = time.monotonic()
    text = runs.finish(process, code=1)
    assert time.monotonic() - since < NOTICED_SECONDS
    assert "vidray: the Ray that was started here has died; the same command goes on" in text
    assert "Traceback" not in text
    # Ray's own agents look after their raylet, and first try to report its end for a minute.
    _, alive = psutil.wait_procs(started, timeout=100)
    assert [child.cmdline() for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
