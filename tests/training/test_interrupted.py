"""Ctrl-C and SIGTERM end a training on Ray at once, and the same command goes on."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae


@pytest.mark.parametrize(
    ("signum", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_training_on_ray_within_seconds_and_the_next_start_resumes(tmp_path, signum, code):
    model = make_videomae(tmp_path / "model", initializer_range=0.02)
    runs.make_classes(tmp_path / "videos", num_videos=8)
    places = ["--source", str(tmp_path / "videos"), "--model", str(model), "--output", str(tmp_path / "out")]
    flags = ["--workers", "2", "--global-batch-size", "2", "--epochs", "2000", "--views", "1x1", "--span", "full"]
    command = [sys.executable, "jobs/train.py", *places, *flags, "--save-every-steps", "5"]
    text = interrupt(command, after="step 20:", signum=signum, code=code)
    assert "vidray: interrupted; nothing is broken" in text
    interrupt(command, after="resuming at step", signum=signum, code=code)


def interrupt(command: list[str], *, after: str, signum: signal.Signals, code: int) -> str:
    """Send a signal once a text has been printed; returns what is printed from there on."""
    process = runs.start(command, cwd=runs.ROOT)
    try:
        assert process.stdout is not None
        assert any(after in line for line in process.stdout), f"it ended before it printed {after!r}"
        process.send_signal(signum)
        return runs.finish(process, code=code, timeout=60)
    finally:
        runs.kill_group(process)
