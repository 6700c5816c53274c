"""Retries: which errors of a file system are worth another attempt, and the attempts themselves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

MAX_ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_LASTING_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_NAMES = frozenset({"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "InvalidURL"})


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a store answered with, or None if the error does not come from an answer.

    botocore keeps it in ``response``, aiohttp in ``status``, Azure in ``status_code``, gcsfs in ``code``.
    """
    for link in error_chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "ResponseMetadata" in response:
            return response["ResponseMetadata"].get("HTTPStatusCode")
        for name in ("status", "status_code", "code"):
            value = getattr(link, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return int(value)
    return None


def is_access_denied(error: BaseException) -> bool:
    """True if the store does not know the caller or forbids it, or there are no credentials."""
    names = {type(link).__name__ for link in error_chain(error)}
    return (
        isinstance(error, PermissionError)
        or http_status(error) in (401, 403)
        or bool(names & {"NoCredentialsError", "PartialCredentialsError"})
    )


def is_transient(error: BaseException) -> bool:
    """True if the same request may succeed later. An error that is not known to last counts as transient."""
    status = http_status(error)
    if status is not None:
        return (status >= 500 and status != 501) or status in _TRANSIENT_STATUSES
    if isinstance(error, _LASTING_ERRORS) or type(error).__name__ in _LASTING_NAMES:
        return False
    return not isinstance(error, TypeError | ValueError | AttributeError | NotImplementedError)


def with_retries(call: Callable[[], T], *, should_retry: Callable[[BaseException], bool] = is_transient) -> T:
    """What ``call`` returns, in up to ``MAX_ATTEMPTS`` attempts with growing pauses of random length.

    Raises:
        Exception: the last error, or the first one that is not worth another attempt.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            if attempt == MAX_ATTEMPTS or not should_retry(error):
                raise
        time.sleep(pause_seconds(attempt))
    raise AssertionError("unreachable")


def pause_seconds(attempt: int) -> float:
    """A random pause before the next attempt: workers that failed together must not come back together."""
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))


def describe(error: BaseException) -> str:
    """The error on one line, for messages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
