"""The live line tells the truth, on a terminal and in a log."""

from __future__ import annotations

import io
import pickle
import re

import pytest
from tqdm import tqdm

from tests.support import runs
from vidray.progress import Progress, StepLine, format_bytes, format_seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(out: Terminal) -> str:
    """What stands in the last line of a terminal."""
    line = ""
    for text in out.getvalue().rpartition("\n")[2].split("\r"):
        line = text + line[len(text) :]
    return line.rstrip()


def test_on_a_terminal_the_line_is_redrawn_and_leaves_no_rest():
    out = Terminal()
    progress = Progress(out=out)
    progress.stage("listing the sources: 1,000,000 objects")
    progress.stage("starting")
    assert shown(out) == "starting"
    progress.say("done")
    assert out.getvalue().endswith("done\n")
    assert shown(out) == ""


def test_a_bar_that_somebody_else_left_open_does_not_move_ours():
    with tqdm(total=10, file=io.StringIO()), tqdm(total=10, file=io.StringIO()):
        out = Terminal()
        progress = Progress(out=out)
        progress.start(total=1000, done=400)
        progress.clear()
    assert "\x1b[A" not in out.getvalue()
    assert shown(out) == ""


def test_on_a_terminal_a_bar_counts():
    out = Terminal()
    progress = Progress(out=out)
    progress.start(total=1000, done=400)
    progress.stage("starting the workers")
    assert shown(out).startswith("starting the workers ·  40%")
    progress.advance(done=100, failed=3)
    with progress.ticking():
        runs.wait_until(lambda: "500 of 1,000 videos, 3 failed" in shown(out), what="the bar")
    assert shown(out) == "", "whoever prints next begins on a clear line"


def test_in_a_log_a_stage_is_said_once_however_often_its_count_moves():
    out = io.StringIO()
    progress = Progress(out=out)
    for count in range(1000):
        progress.stage(f"listing the sources: {count} objects")
    progress.stage("starting the workers")
    assert out.getvalue().splitlines() == ["listing the sources: 0 objects", "starting the workers"]


def test_the_line_counts_what_was_there_before_and_what_failed():
    progress = Progress(out=io.StringIO())
    progress.start(total=1000, done=400)
    progress.advance(done=10, failed=1)
    progress.advance(done=20, failed=2)
    assert progress.line().startswith("430 of 1,000 videos, 3 failed · ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (90061, "25 h 01 min")]
)
def test_times_read_well(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(999, "999 B"), (1536, "1.5 kB"), (5e6, "5.0 MB"), (2e15, "2000.0 TB")])
def test_sizes_read_well(size, text):
    assert format_bytes(size) == text


def test_on_a_terminal_step_lines_take_each_others_place_and_others_stay():
    out = Terminal()
    progress = Progress(out=out)
    progress.log("resuming at step 3")
    for step in (4, 5):
        progress.log(pickle.loads(pickle.dumps(StepLine(f"step {step}: loss 0.5", done=step, total=10))))
    assert re.fullmatch(r" 50% \|[█#]+ +\| step 5: loss 0.5", shown(out))
    progress.log("finished")
    kept = [line.rpartition("\r")[2].strip() for line in out.getvalue().rstrip("\n").split("\n")]
    assert kept == ["resuming at step 3", "finished"]


def test_in_a_log_every_step_line_is_a_line():
    out = io.StringIO()
    progress = Progress(out=out)
    for step in (4, 5):
        progress.log(StepLine(f"step {step}", done=step, total=10))
    assert out.getvalue() == "step 4\nstep 5\n"
