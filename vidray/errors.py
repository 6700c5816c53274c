"""Errors that mean something to a user, apart from mistakes of the programmer."""

from __future__ import annotations

import signal

from vidray.types import Status


class UsageError(Exception):
    """What was asked for cannot be done as asked. Entry points print it without a traceback and exit with 2."""


class RunError(Exception):
    """A run could not go on. Entry points print it without a traceback and exit with 1."""


class TooManyFailuresError(Exception):
    """More videos failed than ``--max-failure-rate`` allows. Entry points exit with 3."""


class TooMuchChangedError(Exception):
    """A run differs from another by more than ``--max-drift`` or ``--max-flips`` allows. Entry points exit with 4."""


class Terminated(BaseException):
    """SIGTERM. As an interrupt, it is nobody's to catch but the entry point's."""


def exit_code(error: BaseException | None) -> int:
    """What a command exits with: 0 without an error, 2 usage, 3 too many failures, 4 too much changed, 130 and 143
    interrupted, else 1.

    Ctrl-C and SIGTERM count also where something broke on the way out, as Ray's connections may.
    """
    link = error
    while link is not None:
        if isinstance(link, KeyboardInterrupt):
            return 128 + signal.SIGINT
        if isinstance(link, Terminated):
            return 128 + signal.SIGTERM
        link = link.__context__
    if isinstance(error, UsageError):
        return 2
    if isinstance(error, TooManyFailuresError):
        return 3
    if isinstance(error, TooMuchChangedError):
        return 4
    return 0 if error is None else 1


class DeviceLostError(Exception):
    """The device of this process is of no use any more: no video's fault, and another process may do the work."""


class VideoError(RuntimeError):
    """One video cannot be scored. It becomes a row with this status, never a traceback.

    A RuntimeError, as PyTorchVideo raises where a file cannot be opened.
    """

    def __init__(self, status: Status, message: str, is_outage: bool = False) -> None:
        """``is_outage``: its store was away until the deadline, so others will fail alike."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.is_outage = is_outage

    def __reduce__(self) -> tuple[type[VideoError], tuple[Status, str, bool]]:
        return VideoError, (self.status, self.message, self.is_outage)
