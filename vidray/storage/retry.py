"""Tries again while a store is away, until a deadline.

The deadline is a time and not a number of tries: a store that comes back after minutes finds the run still there. The
command line sets it, and what is told meanwhile, with `configure`.
"""

from __future__ import annotations

import datetime
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from vidray.errors import RunError
from vidray.storage.failures import Failure, classify, describe, is_outage, retry_after_seconds
from vidray.storage.redaction import redact

T = TypeVar("T")

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 10.0
"""How long a connection may take to come about."""
SILENCE_TIMEOUT_SECONDS = 30.0
"""How long a server may send nothing. There is no limit on the whole while bytes flow."""
STORE_DEADLINE_SECONDS = 600.0
"""Default of ``--store-deadline-seconds``."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SECONDS_BETWEEN_MESSAGES = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settings:
    """What this process does while a store is away."""

    deadline_seconds: float = STORE_DEADLINE_SECONDS
    on_wait: Callable[[str], None] | None = None
    """Shows a line that says what is waited for. (It is an event, too.)"""


_settings = _Settings()
_message_lock = threading.Lock()
_told_at = float("-inf")


def configure(*, deadline_seconds: float | None = None, on_wait: Callable[[str], None] | None = None) -> None:
    """Set, for this process, how long a store is waited for and who is told. None leaves a setting as it is."""
    global _settings
    _settings = _Settings(
        deadline_seconds=_settings.deadline_seconds if deadline_seconds is None else deadline_seconds,
        on_wait=on_wait or _settings.on_wait,
    )


def deadline_seconds() -> float:
    """How long this process waits for a store."""
    return _settings.deadline_seconds


class Deadline:
    """Until when a store is waited for.

    Time in which bytes flow is not held against the store: if a download breaks off after the deadline that was under
    way until then, the deadline starts anew, once.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends_at = time.monotonic() + seconds
        self._bytes_came_at: float | None = None
        self._is_extended = False

    @property
    def remaining_seconds(self) -> float:
        """Time left, at least 0."""
        return max(0.0, self._ends_at - time.monotonic())

    @property
    def is_over(self) -> bool:
        """True if the store is waited for no longer."""
        if self.remaining_seconds > 0:
            return False
        came_at = self._bytes_came_at
        if not self._is_extended and came_at is not None and came_at > self._ends_at:
            self._is_extended, self._ends_at = True, came_at + self.seconds
        return self.remaining_seconds <= 0

    def note_bytes(self) -> None:
        """Some bytes came."""
        self._bytes_came_at = time.monotonic()


def with_retries(
    call: Callable[[], T],
    *,
    what: str,
    deadline: Deadline | None = None,
    should_retry: Callable[[BaseException], bool] = is_outage,
) -> T:
    """What ``call`` returns, tried again until the deadline, with growing pauses of random length.

    A pause is as long as the store asks for (``Retry-After``), but ends with the deadline; then comes the last try.

    Args:
        call: what to do.
        what: the URI that is waited for, for the message.
        deadline: by default the process's (`configure`), from now.
        should_retry: which errors are worth another try.

    Raises:
        Exception: the last error, or the first one that is not worth another try.
    """
    deadline = deadline or Deadline(_settings.deadline_seconds)
    attempt = 0
    while True:
        attempt += 1
        try:
            return call()
        except Exception as error:
            if not should_retry(error) or deadline.is_over:
                raise
            pause = min(max(pause_seconds(attempt), retry_after_seconds(error)), deadline.remaining_seconds)
            _tell(what, error, deadline)
        time.sleep(pause)


def pause_seconds(attempt: int) -> float:
    """A random pause after a failed attempt (1 is the first): callers that failed together do not return together."""
    return random.uniform(0.0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempt - 1, 16)))


def raise_run_error(error: Exception, doing: str) -> NoReturn:
    """Raise a RunError on one line in place of a store's error; a mistake of the programmer stays what it is.

    Args:
        error: what a client raised.
        doing: what could not be done, with its URI: ``cannot read s3://…``.
    """
    failure = classify(error)
    if failure is None:
        raise error
    hint = {Failure.ACCESS_DENIED: " (access denied)", Failure.OUTAGE: " (the store is away)"}.get(failure, "")
    raise RunError(f"{redact(doing)}{hint}: {describe(error)}") from error


def _tell(what: str, error: BaseException, deadline: Deadline) -> None:
    """At most one line every SECONDS_BETWEEN_MESSAGES, from all threads together."""
    global _told_at
    with _message_lock:
        now = time.monotonic()
        if now - _told_at < SECONDS_BETWEEN_MESSAGES:
            return
        _told_at = now
    until = datetime.datetime.now() + datetime.timedelta(seconds=deadline.remaining_seconds)
    text = f"waiting for {redact(what)}: {describe(error)}, trying again until {until:%H:%M:%S}"
    _log.warning("%s", text)
    if _settings.on_wait is not None:
        _settings.on_wait(text)
