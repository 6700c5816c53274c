"""Running score jobs as a user does, and counting what they left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

from tests.support.videos import make_video
from vidray.cli.demo import motion_video

ON_RAY_LONG = pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.long)], indirect=True)
"""For jobs whose like on Ray is tested elsewhere, too: on Ray they run with ``make test-all`` alone."""
ROOT = Path(__file__).resolve().parents[2]
TINY_VIEWS = ("--views", "1x1", "--span", "full")


def make_bucket(folder: Path, *, num_videos: int, num_frames: int = 10) -> list[str]:
    """Small videos ``0000.mp4`` and so on; returns their URIs, sorted. All have the same pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    data = make_video(num_frames=num_frames)
    paths = [folder / f"{number:04d}.mp4" for number in range(num_videos)]
    for path in paths:
        path.write_bytes(data)
    return [str(path) for path in paths]


def make_classes(folder: Path, *, num_videos: int, num_frames: int = 8) -> Path:
    """Shapes that move left or right, ``<label>/000.mp4`` and so on in turn: no single frame tells which."""
    for number in range(num_videos):
        label = ("left", "right")[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        video = motion_video(label, seed=number, num_frames=num_frames)
        (folder / label / f"{number:03d}.mp4").write_bytes(video)
    return folder


def command(*, source: object, model: object, output: object, flags: Sequence[str] = TINY_VIEWS) -> list[str]:
    """The score job's command line."""
    places = ["--source", str(source), "--model", str(model), "--output", str(output)]
    return [sys.executable, str(ROOT / "jobs" / "score.py"), *places, *flags]


def start(arguments: list[str], **kwargs: Any) -> subprocess.Popen[str]:
    """Start a command in a session of its own, its output captured."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **({"env": clean_environment()} | kwargs),
    )


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would connect a run to another test's cluster."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | more


def finish(process: subprocess.Popen[str], *, code: int = 0, timeout: float = 240) -> str:
    """Wait for the end; the exit code must be ``code``. Returns what was printed."""
    text, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit code {process.returncode}, wanted {code}:\n{text[-4000:]}"
    return text


def run(arguments: list[str], *, code: int = 0, **kwargs: Any) -> str:
    """Start and finish."""
    return finish(start(arguments, **kwargs), code=code)


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a command and what it started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition: Callable[[], bool], *, timeout: float = 120, what: str = "the event") -> None:
    """Poll quickly until ``condition`` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {timeout} s"
        time.sleep(0.005)


def parts(output: Path) -> list[Path]:
    """The parts there are."""
    return sorted((output / "predictions").glob("run=*/part-*.parquet"))


def read_rows(output: Path | str) -> list[dict[str, Any]]:
    """Every row of every part, sorted by uri."""
    table: pa.Table = pyarrow.dataset.dataset(f"{output}/predictions", format="parquet").to_table()
    return table.sort_by([("uri", "ascending"), ("attempts", "ascending")]).to_pylist()


def assert_each_once(output: Path | str, uris: Sequence[str]) -> list[dict[str, Any]]:
    """Exactly one row for each of ``uris``. Returns the rows."""
    rows = read_rows(output)
    counts = Counter(row["uri"] for row in rows)
    assert [uri for uri in uris if counts[uri] == 0] == [], "lost"
    assert [uri for uri, count in counts.items() if count > 1] == [], "twice"
    assert sorted(counts) == sorted(uris)
    return rows


def markers(output: Path, name: str = "_SUCCESS") -> list[Path]:
    """The runs' markers of this name."""
    return sorted((output / "_runs").glob(f"*/{name}"))
