"""Whatever a child does, the video that it does it to ends with a status in bounded time, and the next one is fine."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.poison_child import LIES, poisoned
from tests.support.videos import audio_only, make_video
from vidray.errors import RunError, VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.types import Limits, Status, TimeRange, ViewConfig
from vidray.video.random_crops import ClipDraw, CropConfig
from vidray.video.views import decode_views

VIEW = ViewConfig(num_frames=4, size=32, num_clips=2)
LIMITS = Limits(decode_timeout_seconds=20, decode_memory_bytes=256 * 1024**2)
HASTY = dataclasses.replace(LIMITS, decode_timeout_seconds=1.0)
GOOD = make_video(num_frames=20)
BOUND_SECONDS = 8.0
"""Far above what anything here takes, far below what a child that is not killed would (an hour)."""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(view=VIEW, limits=LIMITS, child_module="tests.support.poison_child") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def lasting_sandbox() -> Iterator[Sandbox]:
    """One for many faults, each of which ends its child: what the next fault finds is what the last one left."""
    with Sandbox(view=VIEW, limits=LIMITS, child_module="tests.support.poison_child") as sandbox:
        yield sandbox


@pytest.fixture
def unfiltered_sandbox() -> Iterator[Sandbox]:
    """As where seccomp(2) is forbidden: the child can start processes, and look at what it has open."""
    with Sandbox(view=VIEW, limits=HASTY, child_module="tests.support.unfiltered_poison_child") as sandbox:
        yield sandbox


@pytest.fixture
def hasty_sandbox() -> Iterator[Sandbox]:
    with Sandbox(view=VIEW, limits=HASTY, child_module="tests.support.poison_child") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def good_views() -> np.ndarray:
    return decode_views(GOOD, view=VIEW, limits=LIMITS)[0]


def failure(sandbox: Sandbox, data: bytes) -> VideoError:
    """How decoding ``data`` failed, within bounds."""
    start = time.monotonic()
    with pytest.raises(VideoError) as caught:
        sandbox.decode(data)
    assert time.monotonic() - start < BOUND_SECONDS
    return caught.value


def report(sandbox: Sandbox, fault: str, argument: str = "") -> str:
    """What a child found when it tried something."""
    error = failure(sandbox, poisoned(GOOD, fault, argument))
    assert error.status is Status.UNSUPPORTED, error
    return error.message


def wait_until_hanging(sandbox: Sandbox) -> int:
    """Wait for the word that a hanging child says. Returns its pid."""
    deadline = time.monotonic() + BOUND_SECONDS
    while sandbox._child is None or not select.select([sandbox._child._stderr], [], [], 0.01)[0]:
        assert time.monotonic() < deadline
    assert sandbox.pid is not None
    return sandbox.pid


def ends(pid: int) -> Callable[[float], bool]:
    """A function that waits so many seconds for the end of process ``pid``, and says whether it came."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return lambda seconds: bool(poll.poll(seconds * 1000))


# -- what it is for --------------------------------------------------------------------------------------------------


def test_views_and_info_are_those_of_the_decoder_itself() -> None:
    expected_views, expected_info = decode_views(GOOD, view=VIEW, limits=LIMITS)
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        views, info = sandbox.decode(GOOD)
    np.testing.assert_array_equal(views, expected_views)
    assert info.decode_seconds is not None
    assert 0 < info.decode_seconds < BOUND_SECONDS
    assert info == dataclasses.replace(expected_info, decode_seconds=info.decode_seconds)


def test_views_are_a_copy_of_their_own(sandbox: Sandbox, good_views: np.ndarray) -> None:
    views, _ = sandbox.decode(GOOD)
    other, _ = sandbox.decode(make_video(num_frames=5, draw=lambda i, w, h: np.full((h, w, 3), 200, np.uint8)))
    assert not np.array_equal(views, other)
    np.testing.assert_array_equal(views, good_views)


def test_views_are_written_into_out(sandbox: Sandbox, good_views: np.ndarray) -> None:
    out = np.zeros(VIEW.views_shape, np.uint8)
    views, _ = sandbox.decode(memoryview(GOOD), out=out)
    assert views is out
    np.testing.assert_array_equal(out, good_views)


@pytest.mark.parametrize("out", [np.zeros((1, 2, 3), np.uint8), np.zeros(VIEW.views_shape, np.int8)])
def test_out_of_another_shape_or_type_is_refused(sandbox: Sandbox, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out must be uint8"):
        sandbox.decode(GOOD, out=out)


def test_what_the_decoder_finds_is_passed_on_and_costs_no_child(sandbox: Sandbox) -> None:
    sandbox.decode(GOOD)
    pid = sandbox.pid
    assert failure(sandbox, audio_only()).status is Status.NO_VIDEO
    for data in (b"", b"no video at all"):
        error = failure(sandbox, data)
        assert error.status in (Status.CORRUPT, Status.UNSUPPORTED)
        assert error.message
    assert sandbox.pid == pid


@pytest.mark.parametrize("span", ["stride", "stream"])
def test_the_memory_of_a_large_video_is_given_back_as_soon_as_it_is_done(span: str) -> None:
    view = VIEW if span == "stride" else dataclasses.replace(VIEW, span="stream", num_clips=1)
    data = GOOD + bytes(65 * 1024**2)
    with Sandbox(view=view, limits=LIMITS) as sandbox:
        if span == "stream":
            assert list(sandbox.stream(data))
        else:
            sandbox.decode(data)
        assert os.fstat(sandbox._child._input_fd).st_size == 0


def test_too_large_an_object_never_reaches_a_child() -> None:
    with Sandbox(view=VIEW, limits=dataclasses.replace(LIMITS, max_object_bytes=len(GOOD) - 1)) as sandbox:
        assert failure(sandbox, GOOD).status is Status.TOO_LARGE
        assert sandbox.pid is None


def test_a_videos_own_bytes_do_not_count_against_its_memory(good_views: np.ndarray) -> None:
    limits = dataclasses.replace(LIMITS, decode_memory_bytes=64 * 1024**2)
    padding = (160 * 1024**2).to_bytes(4, "big") + b"free" + bytes(160 * 1024**2 - 8)
    with Sandbox(view=VIEW, limits=limits) as sandbox:
        np.testing.assert_array_equal(sandbox.decode(GOOD + padding)[0], good_views)
        np.testing.assert_array_equal(sandbox.decode(GOOD)[0], good_views)


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "argument", "status", "message"),
    [
        ("segfault", "", Status.DECODER_CRASHED, "SIGSEGV"),
        ("signal", "SIGABRT", Status.DECODER_CRASHED, "SIGABRT"),
        ("signal", "SIGBUS", Status.DECODER_CRASHED, "SIGBUS"),
        ("signal", "SIGKILL", Status.OUT_OF_MEMORY, "killed from outside .SIGKILL."),
        ("signal", "SIGALRM", Status.DECODE_TIMEOUT, "own deadline"),
        ("memory", "", Status.OUT_OF_MEMORY, f"more than {LIMITS.decode_memory_bytes} bytes"),
        ("exit_zero", "", Status.DECODER_CRASHED, "exited with code 0"),
        ("hang_up", "", Status.DECODER_CRASHED, "hung up"),
        ("shrink_output", "", Status.DECODER_CRASHED, "Operation not permitted"),
        ("grow_output", "", Status.DECODER_CRASHED, "OSError"),
        ("key_error", "", Status.DECODER_CRASHED, "KeyError: 'a bug'"),
    ],
)
def test_fault_ends_one_video_and_not_the_next(
    lasting_sandbox: Sandbox, good_views: np.ndarray, fault: str, argument: str, status: Status, message: str
) -> None:
    lasting_sandbox.decode(GOOD)
    error = failure(lasting_sandbox, poisoned(GOOD, fault, argument))
    assert error.status is status
    assert re.search(message, error.message)
    np.testing.assert_array_equal(lasting_sandbox.decode(GOOD)[0], good_views)


@pytest.mark.parametrize("lie", LIES)
def test_lie_ends_one_video_and_not_the_next(lasting_sandbox: Sandbox, good_views: np.ndarray, lie: str) -> None:
    lasting_sandbox.decode(GOOD)
    error = failure(lasting_sandbox, poisoned(GOOD, lie))
    assert error.status is Status.DECODER_CRASHED
    assert "broke its protocol" in error.message
    np.testing.assert_array_equal(lasting_sandbox.decode(GOOD)[0], good_views)


def test_hang_that_holds_the_gil_ends_at_its_deadline(hasty_sandbox: Sandbox, good_views: np.ndarray) -> None:
    hasty_sandbox.decode(GOOD)
    start = time.monotonic()
    error = failure(hasty_sandbox, poisoned(GOOD, "hang"))
    assert error.status is Status.DECODE_TIMEOUT
    assert "after 1 seconds" in error.message
    assert time.monotonic() - start >= 1.0
    np.testing.assert_array_equal(hasty_sandbox.decode(GOOD)[0], good_views)


def test_processes_that_a_child_leaves_behind_are_killed_with_it(unfiltered_sandbox: Sandbox) -> None:
    unfiltered_sandbox.decode(GOOD)
    pid = unfiltered_sandbox.pid
    error = failure(unfiltered_sandbox, poisoned(GOOD, "leave_process_behind"))
    # Root may start processes: this one holds the socket until the deadline. Others may not.
    allowed = os.geteuid() == 0
    assert error.status is (Status.DECODE_TIMEOUT if allowed else Status.DECODER_CRASHED), error
    deadline = time.monotonic() + 10  # a kill is on its way when it is sent, not done
    while pid in {_session(process.pid) for process in psutil.process_iter()}:
        assert time.monotonic() < deadline, "a process of the child's session still runs"
        time.sleep(0.01)


def _session(pid: int) -> int | None:
    """The session of a process that runs; None for one that ended, reaped or not."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            return os.getsid(pid)
    return None


def test_a_child_that_talks_too_much_is_not_held_up(sandbox: Sandbox, good_views: np.ndarray) -> None:
    for _ in range(3):
        np.testing.assert_array_equal(sandbox.decode(poisoned(GOOD, "talk"))[0], good_views)


def test_killed_while_decoding(sandbox: Sandbox, good_views: np.ndarray) -> None:
    sandbox.decode(GOOD)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(failure, sandbox, poisoned(GOOD, "hang"))
        os.kill(wait_until_hanging(sandbox), signal.SIGKILL)
        assert future.result().status is Status.OUT_OF_MEMORY
    np.testing.assert_array_equal(sandbox.decode(GOOD)[0], good_views)


def test_killed_while_idle_blames_no_video(sandbox: Sandbox, good_views: np.ndarray) -> None:
    sandbox.decode(GOOD)
    pid = sandbox.pid
    assert pid is not None
    ended = ends(pid)
    os.kill(pid, signal.SIGKILL)
    assert ended(BOUND_SECONDS)
    np.testing.assert_array_equal(sandbox.decode(GOOD)[0], good_views)
    assert sandbox.pid != pid


def test_interrupted_decode_leaves_no_reply_for_the_next(sandbox: Sandbox, good_views: np.ndarray) -> None:
    def interrupt() -> None:
        wait_until_hanging(sandbox)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            sandbox.decode(poisoned(GOOD, "hang"))
        future.result()
    np.testing.assert_array_equal(sandbox.decode(GOOD)[0], good_views)


def test_sandboxes_in_threads_do_not_disturb_each_other(good_views: np.ndarray) -> None:
    def work(fault: str) -> list[Status]:
        statuses = []
        with Sandbox(view=VIEW, limits=LIMITS, child_module="tests.support.poison_child") as sandbox:
            for _ in range(4):
                np.testing.assert_array_equal(sandbox.decode(GOOD)[0], good_views)
                statuses.append(failure(sandbox, poisoned(GOOD, fault)).status)
        return statuses

    with ThreadPoolExecutor(4) as pool:
        crashed = list(pool.map(work, ["segfault", "exit_zero", "key_error", "garbage"]))
    assert crashed == [[Status.DECODER_CRASHED] * 4] * 4


def test_a_child_that_cannot_start_is_no_videos_fault() -> None:
    with Sandbox(view=VIEW, limits=LIMITS, child_module="tests.no_such_child") as sandbox:
        with pytest.raises(RunError, match=r"No module named 'tests\.no_such_child'"):
            sandbox.decode(GOOD)
        assert sandbox.pid is None


# -- life and death --------------------------------------------------------------------------------------------------


def test_started_early_the_child_is_the_one_that_decodes(sandbox: Sandbox) -> None:
    assert sandbox.pid is None
    sandbox.start()
    pid = sandbox.pid
    assert pid is not None
    sandbox.start()
    sandbox.decode(GOOD)
    assert sandbox.pid == pid


def test_child_is_replaced_after_so_many_videos_good_or_bad() -> None:
    pids = []
    with Sandbox(view=VIEW, limits=LIMITS, recycle_after=3) as sandbox:
        for i in range(7):
            if i == 1:
                failure(sandbox, audio_only())
            else:
                sandbox.decode(GOOD)
            pids.append(sandbox.pid)
    assert pids == [pids[0]] * 3 + [pids[3]] * 3 + [pids[6]]
    assert len(set(pids)) == 3


def test_recycling_must_make_sense() -> None:
    with pytest.raises(ValueError, match="recycle_after must be at least 1, got 0"):
        Sandbox(view=VIEW, limits=LIMITS, recycle_after=0)


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_child_ends_with_its_sandbox(how: str) -> None:
    sandbox = Sandbox(view=VIEW, limits=LIMITS)
    sandbox.decode(GOOD)
    assert sandbox.pid is not None
    ended = ends(sandbox.pid)
    assert not ended(0)
    if how == "closed":
        sandbox.close()
    del sandbox
    gc.collect()
    assert ended(0)


PARENT = """
import sys, threading
from tests.support.poison_child import poisoned
from tests.sandbox.test_sandbox import GOOD, HASTY, VIEW, wait_until_hanging
from vidray.sandbox.sandbox import Sandbox

sandbox = Sandbox(view=VIEW, limits=HASTY, child_module="tests.support.poison_child")
sandbox.decode(GOOD)
if sys.argv[1] == "busy":
    threading.Thread(target=sandbox.decode, args=(poisoned(GOOD, "hang"),)).start()
    wait_until_hanging(sandbox)
print(sandbox.pid, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("child_is", ["idle", "busy"])
def test_child_ends_when_its_parent_is_killed(child_is: str) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", PARENT, child_is], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        ended = ends(pid)
        assert not ended(0)
        parent.kill()
    if child_is == "busy":
        assert not ended(0.2)  # it hangs in C and sees no end of file: its own timer must do it
    assert ended(BOUND_SECONDS)


def _num_open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_file_descriptor_is_lost_over_many_decodes(sandbox: Sandbox) -> None:
    sandbox.decode(GOOD)
    before = _num_open_fds()
    for _ in range(200):
        sandbox.decode(GOOD)
    assert _num_open_fds() == before


def test_no_file_descriptor_nor_process_is_lost_over_many_children(sandbox: Sandbox) -> None:
    sandbox.close()
    before, children = _num_open_fds(), set(psutil.Process().children())
    for i in range(6):
        sandbox.decode(GOOD)
        if i % 2:
            failure(sandbox, poisoned(GOOD, "segfault"))
        else:
            sandbox.close()
    assert _num_open_fds() == before
    assert set(psutil.Process().children()) <= children


# -- what the child has ----------------------------------------------------------------------------------------------


def test_child_gets_no_credentials(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/kept")
    found = json.loads(report(sandbox, "report_environment"))
    assert set(found["names"]) == {
        "LANG", "LD_LIBRARY_PATH", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"
    }  # fmt: skip
    assert found["cwd"] == "/"
    assert found["umask"] == 0o077


def test_child_has_no_file_of_its_parent(unfiltered_sandbox: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "open").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        found = json.loads(report(unfiltered_sandbox, "report_open_files"))
    names = sorted(re.sub(r":\[\d+\]| \(deleted\)", "", name) for name in found)
    assert names == ["/dev/null", "/memfd:vidray-input", "/memfd:vidray-views", "pipe", "socket"]


def test_a_sandbox_imports_nothing_heavy() -> None:
    heavy = {"av", "torch", "ray", "vidray.video.views"}
    code = f"import sys, vidray.sandbox.sandbox; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_of_one_process_share_no_ends() -> None:
    """A child that held another's socket would keep it alive after its parent's death."""
    with contextlib.ExitStack() as stack:
        sandboxes = [
            stack.enter_context(Sandbox(view=VIEW, limits=LIMITS, child_module="tests.support.unfiltered_poison_child"))
            for _ in range(4)
        ]
        barrier = threading.Barrier(4)

        def open_files(sandbox: Sandbox) -> list[str]:
            barrier.wait()
            return json.loads(report(sandbox, "report_open_files"))

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(open_files, sandboxes))
    sockets = [name for files in found for name in files if name.startswith("socket:")]
    assert len(sockets) == len(set(sockets)) == 4


def test_training_clips_and_parts_are_those_of_this_process() -> None:
    view = dataclasses.replace(VIEW, num_clips=1)
    crop = CropConfig(mode="resized", min_short_side=48, max_short_side=48)
    with Sandbox(view=view, limits=LIMITS, crop=crop) as sandbox:
        for seed in (0, 7, 2**64 - 1):
            for time_range in (
                TimeRange(),
                TimeRange(start_seconds=0.25),
                TimeRange(start_seconds=0.1, end_seconds=0.5),
            ):
                views, _ = sandbox.decode(GOOD, time_range=time_range, seed=seed)
                draw = ClipDraw(crop=crop, seed=seed)
                expected, _ = decode_views(GOOD, view=view, limits=LIMITS, time_range=time_range, draw=draw)
                np.testing.assert_array_equal(views, expected)


def test_several_views_of_a_training_clip_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="num_clips=2"):
        Sandbox(view=VIEW, limits=LIMITS, crop=CropConfig(mode="random", min_short_side=32, max_short_side=32))


def test_a_part_that_is_not_there_costs_no_child() -> None:
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        sandbox.decode(GOOD)
        pid = sandbox.pid
        with pytest.raises(VideoError, match="the clip starts at 9 s"):
            sandbox.decode(GOOD, time_range=TimeRange(start_seconds=9.0))
        assert sandbox.pid == pid


def test_a_child_is_as_nice_as_asked_for():
    with Sandbox(view=VIEW, limits=LIMITS, niceness=5) as sandbox:
        sandbox.decode(GOOD)
        assert os.getpriority(os.PRIO_PROCESS, sandbox.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
        autogroup = Path(f"/proc/{sandbox.pid}/autogroup")
        if autogroup.exists():
            assert autogroup.read_text().split()[-2:] == ["nice", "5"]
