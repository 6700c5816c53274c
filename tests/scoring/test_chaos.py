"""Trials too long for every day: twenty kills of each kind of process in one run, and thousands of broken files."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.videos import make_video

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

NUM_KILLS = 20
KINDS = {
    "local": {"worker": "vidray.scoring.runners.local_worker", "decoder": "vidray.sandbox.child"},
    "ray": {"decode actor": "MapBatches(DecodeStage)", "predict actor": "MapBatches(PredictStage)"},
}
"""What the command lines of a runner's processes contain."""
NUM_MUTATED = 3000
MUXERS = {"mp4": "mp4", "mkv": "matroska", "avi": "avi", "ts": "mpegts", "flv": "flv"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in KINDS.items() for kind in kinds], ids=lambda value: value
)
def test_a_run_whose_processes_are_killed_twenty_times_has_one_row_for_each_video(tmp_path, model, name, kind):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=3000, num_frames=150)
    output = tmp_path / "out"
    flags = (*runs.TINY_VIEWS, "--rows-per-part", "8", "--runner", name)
    process = runs.start(runs.command(source=tmp_path / "videos", model=model, output=output, flags=flags))
    seeded = random.Random(kind)
    for number in range(NUM_KILLS):
        reached = len(runs.parts(output)) + 5  # a process that replaces a killed one has begun to work by then
        runs.wait_until(lambda: len(runs.parts(output)) >= reached or process.poll() is not None, what="a part")  # noqa: B023
        assert process.poll() is None, f"the run was over after {number} kills: {process.communicate()[0][-2000:]}"
        victims = wait_for_processes(process, KINDS[name][kind])
        assert victims, f"the run was over after {number} kills: {process.communicate()[0][-2000:]}"
        os.kill(seeded.choice(victims), signal.SIGKILL)
    text = runs.finish(process, timeout=900)
    assert "Traceback" not in text
    statuses = Counter(row["status"] for row in runs.assert_each_once(output, uris))
    # A video whose decoder was killed is its first suspect: no more of them than kills.
    assert statuses["ok"] >= len(uris) - (NUM_KILLS if kind == "decoder" else 0), statuses


def wait_for_processes(driver: Popen[str], pattern: str) -> list[int]:
    """The processes under ``driver`` with ``pattern`` in their command lines, as soon as there are any."""
    found: list[int] = []

    def look() -> bool:
        found[:] = processes(driver.pid, pattern)
        return bool(found) or driver.poll() is not None

    runs.wait_until(look, what=f"a process {pattern}")
    return found


def processes(pid: int, pattern: str) -> Iterator[int]:
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if pattern in " ".join(process.cmdline()):
                yield process.pid


@pytest.mark.parametrize("name", ["local", "ray"])
def test_a_driver_killed_twenty_times_scores_each_video_once(tmp_path, model, name):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=4000, num_frames=60)
    output = tmp_path / "out"
    flags = (*runs.TINY_VIEWS, "--rows-per-part", "8", "--runner", name)
    arguments = runs.command(source=tmp_path / "videos", model=model, output=output, flags=flags)
    seeded = random.Random(name)
    for number in range(NUM_KILLS):
        reached = len(runs.parts(output)) + seeded.choice((0, 1, 2))
        process = runs.start(arguments)
        runs.wait_until(lambda: len(runs.parts(output)) >= reached or process.poll() is not None, what="a part")  # noqa: B023
        time.sleep(seeded.uniform(0, 0.3))
        assert process.poll() is None, f"the run was over after {number} kills: {process.communicate()[0][-2000:]}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    runs.run(arguments)
    rows = runs.assert_each_once(output, uris)
    assert {row["status"] for row in rows} == {"ok"}


def test_thousands_of_broken_files_are_a_row_each(tmp_path, model):
    """Bytes flipped, left out, doubled and cut off, in five containers."""
    whole = {name: make_video(num_frames=20, container=muxer) for name, muxer in MUXERS.items()}
    uris = []
    (tmp_path / "videos").mkdir()
    for number in range(NUM_MUTATED):
        seeded = random.Random(number)
        suffix = seeded.choice(sorted(whole))
        path = tmp_path / "videos" / f"{number:04d}.{suffix}"
        path.write_bytes(mutated(whole[suffix], seeded))
        uris.append(str(path))
    flags = (*runs.TINY_VIEWS, "--max-failure-rate", "1")
    arguments = runs.command(source=tmp_path / "videos", model=model, output=tmp_path / "out", flags=flags)
    text = runs.finish(runs.start(arguments), timeout=900)
    assert "Traceback" not in text
    statuses = Counter(row["status"] for row in runs.assert_each_once(tmp_path / "out", uris))
    assert len(statuses) >= 3, statuses


def mutated(data: bytes, seeded: random.Random) -> bytes:
    """``data`` with one to forty places damaged."""
    damaged = bytearray(data)
    for _ in range(seeded.randint(1, 40)):
        at, length = seeded.randrange(len(damaged)), seeded.randint(1, 64)
        match seeded.choice(("flip", "cut out", "double", "end")):
            case "flip":
                damaged[at] ^= 1 << seeded.randrange(8)
            case "cut out":
                del damaged[at : at + length]
            case "double":
                damaged[at:at] = damaged[at : at + length]
            case "end" if seeded.random() < 0.05:
                del damaged[max(at, 1) :]
        if len(damaged) < 2:
            break
    return bytes(damaged)
