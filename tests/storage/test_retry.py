"""A store is waited for until a deadline, with pauses of random length, and the user is told what is waited for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from vidray.errors import RunError
from vidray.storage import retry
from vidray.storage.retry import Deadline, pause_seconds, raise_run_error, with_retries


class AwayError(OSError):
    """A store's answer while it is away."""

    def __init__(self, retry_after: str | None = None) -> None:
        super().__init__("away")
        self.headers = {"Retry-After": retry_after} if retry_after else {}


def failing(times: int, error: Callable[[], Exception] = AwayError) -> Callable[[], int]:
    """A call that fails so often, then returns the number of calls."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error()
        return calls

    return call


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the user gets."""
    lines: list[str] = []
    monkeypatch.setattr(retry, "_settings", retry._settings)
    monkeypatch.setattr(retry, "_told_at", float("-inf"))
    retry.configure(on_wait=lines.append)
    return lines


def test_what_succeeds_later_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
    assert with_retries(failing(8), what="s3://b", deadline=Deadline(60)) == 9


def test_the_last_error_is_raised_when_the_deadline_is_over() -> None:
    started = time.monotonic()
    with pytest.raises(AwayError):
        with_retries(failing(10**9), what="s3://b", deadline=Deadline(0.7))
    assert 0.7 <= time.monotonic() - started < 1.5


def test_what_lasts_is_raised_at_once() -> None:
    call = failing(1, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        with_retries(call, what="s3://b")
    assert call() == 2


def test_a_deadline_of_none_left_is_one_try() -> None:
    call = failing(1)
    with pytest.raises(AwayError):
        with_retries(call, what="s3://b", deadline=Deadline(0))
    assert call() == 2


def test_the_store_says_how_long_it_wants_to_be_left_alone() -> None:
    started = time.monotonic()
    assert with_retries(failing(1, lambda: AwayError("1")), what="s3://b", deadline=Deadline(5)) == 2
    assert time.monotonic() - started >= 1


def test_no_pause_goes_beyond_the_deadline_and_then_comes_the_last_try() -> None:
    started = time.monotonic()
    assert with_retries(failing(1, lambda: AwayError("3600")), what="s3://b", deadline=Deadline(0.5)) == 2
    assert 0.5 <= time.monotonic() - started < 1


def test_pauses_grow_are_random_and_have_a_limit() -> None:
    for attempt, longest in ((1, 0.5), (2, 1.0), (5, 8.0), (7, 30.0), (100, 30.0)):
        pauses = [pause_seconds(attempt) for _ in range(1000)]
        assert max(pauses) <= longest
        assert max(pauses) > 0.9 * longest
        assert min(pauses) < 0.1 * longest


def test_the_user_is_told_what_is_waited_for_but_not_each_time(told: list[str]) -> None:
    with_retries(failing(3), what="s3://bucket/part", deadline=Deadline(60))
    (line,) = told
    assert re.fullmatch(r"waiting for s3://bucket/part: AwayError: away, trying again until \d\d:\d\d:\d\d", line)


def test_a_download_that_flows_through_its_deadline_may_begin_once_more() -> None:
    deadline = Deadline(0.2)
    time.sleep(0.3)
    deadline.note_bytes()
    assert not deadline.is_over
    time.sleep(0.3)
    deadline.note_bytes()
    assert deadline.is_over


def test_a_download_that_fell_silent_before_its_deadline_may_not() -> None:
    deadline = Deadline(0.2)
    deadline.note_bytes()
    time.sleep(0.3)
    assert deadline.is_over


def test_errors_of_a_store_become_run_errors_and_mistakes_of_ours_do_not() -> None:
    with pytest.raises(RunError, match=r"^cannot read s3://b \(the store is away\): AwayError: away$"):
        raise_run_error(AwayError(), "cannot read s3://b")
    with pytest.raises(TypeError):
        raise_run_error(TypeError("oops"), "cannot read s3://b")
