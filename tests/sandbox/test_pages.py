"""A large video reaches its decoder page by page: the same views, no byte but its own, no time but the decoder's."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.sandbox.test_sandbox import BOUND_SECONDS, ends
from tests.support.paging_child import ACTS, video_that
from tests.support.videos import make_video, noisy_video
from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.types import Limits, Status, ViewConfig
from vidray.video.byte_sources import WINDOW_PAGES
from vidray.video.views import decode_views

VIEW = ViewConfig(num_frames=2, size=32, num_clips=3, stride=1)
LIMITS = Limits(decode_timeout_seconds=20, decode_memory_bytes=256 * 1024**2)
HASTY = dataclasses.replace(LIMITS, decode_timeout_seconds=1.0)
GOOD = noisy_video()
PAGE_BYTES = 8192


class Pages:
    """A video in pages, that notes what is read of it."""

    def __init__(self, data: bytes, *, page_bytes: int = PAGE_BYTES) -> None:
        self._data = data
        self.size_bytes, self.page_bytes = len(data), page_bytes
        self.on_read: Callable[[], None] = lambda: None
        self.reads: list[tuple[int, int]] = []
        self.num_read_whole = 0

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= self.size_bytes
        self.reads.append((start, stop))
        self.on_read()
        return self._data[start:stop]

    def read_all(self) -> bytes:
        self.num_read_whole += 1
        return self._data

    @property
    def num_bytes_read(self) -> int:
        return sum(stop - start for start, stop in self.reads)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(view=VIEW, limits=LIMITS, child_module="tests.support.paging_child") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hasty_sandbox() -> Iterator[Sandbox]:
    with Sandbox(view=VIEW, limits=HASTY, child_module="tests.support.paging_child") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def good_views() -> np.ndarray:
    return decode_views(GOOD, view=VIEW, limits=LIMITS)[0]


def failure(sandbox: Sandbox, source: Pages) -> VideoError:
    start = time.monotonic()
    with pytest.raises(VideoError) as caught:
        sandbox.decode(source)
    assert time.monotonic() - start < BOUND_SECONDS
    return caught.value


def test_views_and_info_are_those_of_the_whole_video_and_only_parts_are_read() -> None:
    source = Pages(GOOD)
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        expected_views, expected_info = sandbox.decode(GOOD)
        views, info = sandbox.decode(source)
    np.testing.assert_array_equal(views, expected_views)
    assert dataclasses.replace(info, decode_seconds=None) == dataclasses.replace(expected_info, decode_seconds=None)
    assert source.num_bytes_read < len(GOOD) / 3
    assert not source.num_read_whole


def test_the_window_is_all_that_is_held(good_views: np.ndarray) -> None:
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        np.testing.assert_array_equal(sandbox.decode(Pages(GOOD))[0], good_views)
        assert os.fstat(sandbox._child._input_fd).st_size <= WINDOW_PAGES * PAGE_BYTES < len(GOOD) / 2


@pytest.mark.parametrize(
    "data",
    [
        make_video(num_frames=90, container="matroska"),
        make_video(num_frames=90, container_options={"movflags": "frag_keyframe+empty_moov"}),
        make_video(num_frames=8),
    ],
    ids=["Matroska", "fragments", "short"],
)
def test_what_cannot_be_done_in_parts_is_taken_whole_once(sandbox: Sandbox, data: bytes) -> None:
    pid, source = sandbox.pid, Pages(data)
    views, _ = sandbox.decode(source)
    np.testing.assert_array_equal(views, decode_views(data, view=VIEW, limits=LIMITS)[0])
    assert source.num_read_whole == 1
    assert pid in (None, sandbox.pid), "it costs no child"


def test_what_would_read_more_than_the_video_has_takes_it_whole() -> None:
    """Pages of which the window holds too few: what the first opening read is gone at the second."""
    data = make_video(num_frames=600, gop_size=10)
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        source = Pages(data, page_bytes=256)
        np.testing.assert_array_equal(sandbox.decode(source)[0], decode_views(data, view=VIEW, limits=LIMITS)[0])
    assert source.num_read_whole == 1
    assert source.num_bytes_read <= len(data)


@pytest.mark.parametrize("act", [act for act in ACTS if act != "hang"])
def test_no_other_byte_is_read_whatever_the_child_asks_for(sandbox: Sandbox, good_views: np.ndarray, act: str) -> None:
    source = Pages(video_that(act, num_pages=8, page_bytes=PAGE_BYTES))
    error = failure(sandbox, source)
    assert error.status is Status.DECODER_CRASHED
    assert "broke its protocol" in error.message
    assert source.num_bytes_read <= source.size_bytes
    assert not source.num_read_whole
    np.testing.assert_array_equal(sandbox.decode(Pages(GOOD))[0], good_views)


def test_a_child_that_does_not_read_the_answers_ends_at_the_deadline(hasty_sandbox: Sandbox) -> None:
    error = failure(hasty_sandbox, Pages(video_that("never_reads", num_pages=100_000, page_bytes=64), page_bytes=64))
    assert error.status is Status.DECODER_CRASHED
    assert "does not read" in error.message


@pytest.mark.parametrize("act", ["hang", "whole_of_another"])
def test_a_child_that_has_the_whole_video_gets_no_pages(sandbox: Sandbox, good_views: np.ndarray, act: str) -> None:
    with pytest.raises(VideoError, match="broke its protocol"):
        sandbox.decode(video_that(act, num_pages=8, page_bytes=PAGE_BYTES))
    np.testing.assert_array_equal(sandbox.decode(GOOD)[0], good_views)


def test_waiting_for_pages_does_not_count_against_the_deadline(hasty_sandbox: Sandbox, good_views: np.ndarray) -> None:
    """Neither the parent's of one second nor the child's own of two."""
    source, pauses = Pages(GOOD), iter([1.2, 1.2])
    source.on_read = lambda: time.sleep(next(pauses, 0))
    views, info = hasty_sandbox.decode(source)
    np.testing.assert_array_equal(views, good_views)
    assert info.decode_seconds is not None
    assert info.decode_seconds < 1


def test_a_child_that_hangs_between_pages_ends_at_the_deadline(hasty_sandbox: Sandbox, good_views: np.ndarray) -> None:
    source = Pages(video_that("hang", num_pages=8, page_bytes=PAGE_BYTES))
    source.on_read = lambda: time.sleep(0.7)
    start = time.monotonic()
    error = failure(hasty_sandbox, source)
    assert error.status is Status.DECODE_TIMEOUT
    assert "after 1 seconds of decoding" in error.message
    assert 2.4 <= time.monotonic() - start < 4, "twice waited for pages, once for the child"
    np.testing.assert_array_equal(hasty_sandbox.decode(GOOD)[0], good_views)


@pytest.mark.parametrize("status", [Status.CHANGED, Status.FETCH_FAILED, Status.UNSUPPORTED])
def test_pages_that_cannot_be_had_are_the_videos_status(
    sandbox: Sandbox, good_views: np.ndarray, status: Status
) -> None:
    source = Pages(GOOD)

    def breaks_off() -> None:
        if len(source.reads) == 3:
            raise VideoError(status, "in the middle")

    source.on_read = breaks_off
    error = failure(sandbox, source)
    assert (error.status, error.message) == (status, "in the middle")
    np.testing.assert_array_equal(sandbox.decode(Pages(GOOD))[0], good_views)


def test_killed_while_it_waits_for_pages(sandbox: Sandbox, good_views: np.ndarray) -> None:
    source = Pages(GOOD)
    source.on_read = lambda: os.kill(sandbox.pid or 0, signal.SIGKILL)
    error = failure(sandbox, source)
    assert error.status is Status.OUT_OF_MEMORY
    assert "killed from outside" in error.message
    np.testing.assert_array_equal(sandbox.decode(Pages(GOOD))[0], good_views)


def test_interrupted_while_pages_are_fetched_leaves_nothing_for_the_next(
    sandbox: Sandbox, good_views: np.ndarray
) -> None:
    source = Pages(GOOD)

    def interrupt() -> None:
        raise KeyboardInterrupt

    source.on_read = interrupt
    with pytest.raises(KeyboardInterrupt):
        sandbox.decode(source)
    np.testing.assert_array_equal(sandbox.decode(GOOD)[0], good_views)


_PARENT = """
import os, time
from tests.sandbox.test_pages import GOOD, LIMITS, VIEW, Pages
from vidray.sandbox.sandbox import Sandbox
sandbox, source = Sandbox(view=VIEW, limits=LIMITS), Pages(GOOD)
def wait():
    print(sandbox.pid, flush=True)
    time.sleep(3600)
source.on_read = wait
sandbox.decode(source)
"""


def test_a_child_that_waits_for_pages_ends_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child_ends = ends(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert child_ends(BOUND_SECONDS)
