"""Errors that mean something to a user, apart from mistakes of the programmer."""

from __future__ import annotations

from vidray.types import Status


class UsageError(Exception):
    """What was asked for cannot be done as asked. Doors print it without a traceback and exit with 2."""


class RunError(Exception):
    """A run could not go on. Doors print it without a traceback and exit with 1."""


class TooManyFailuresError(Exception):
    """More videos failed than ``--max-failure-rate`` allows. Doors exit with 3."""


class VideoError(Exception):
    """One video cannot be scored. It becomes a row with this status, never a traceback."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def __reduce__(self) -> tuple[type[VideoError], tuple[Status, str]]:
        return VideoError, (self.status, self.message)
