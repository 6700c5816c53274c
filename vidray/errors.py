"""Errors that mean something to a user, apart from mistakes of the programmer."""

from __future__ import annotations

import signal

from vidray.types import Status

EXIT_CODES = {
    0: "all is well, or there was nothing to do",
    1: "it could not go on, and the message says why: worth a restart, the same command goes on from there",
    2: "the command is wrong; the message says what was got and what is allowed: never restart it as it is",
    3: "all rows are written, but more than --max-failure-rate of the videos failed or have no scores",
    4: "all rows are written, but more changed since the last good night than --max-drift or --max-flips allows",
    5: "another run works on this output; --wait waits for its end instead",
    130: "Ctrl-C; nothing is broken, the same command goes on from there",
    143: "SIGTERM; nothing is broken, the same command goes on from there",
}
"""What each exit code of a command means."""


class UsageError(Exception):
    """What was asked for cannot be done as asked. Entry points print it without a traceback and exit with 2."""


class RunError(Exception):
    """A run could not go on. Entry points print it without a traceback and exit with 1."""


class OutputInUseError(RunError):
    """Another run holds the output. Entry points exit with 5: that is no failure of the night."""


class TooManyFailuresError(Exception):
    """More videos failed than ``--max-failure-rate`` allows. Entry points exit with 3."""


class TooMuchChangedError(Exception):
    """A run differs from another by more than ``--max-drift`` or ``--max-flips`` allows. Entry points exit with 4."""


class Terminated(BaseException):
    """SIGTERM. As an interrupt, it is nobody's to catch but the entry point's."""


def exit_code(error: BaseException | None) -> int:
    """What a command exits with: a key of `EXIT_CODES`.

    Ctrl-C and SIGTERM count also where something broke on the way out, as Ray's connections may.
    """
    link = error
    while link is not None:
        if isinstance(link, KeyboardInterrupt):
            return 128 + signal.SIGINT
        if isinstance(link, Terminated):
            return 128 + signal.SIGTERM
        link = link.__context__
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, UsageError):
        return 2
    if isinstance(error, TooManyFailuresError):
        return 3
    if isinstance(error, TooMuchChangedError):
        return 4
    if isinstance(error, OutputInUseError):
        return 5
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
