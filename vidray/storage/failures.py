"""What an error of a store means, for every client that fsspec uses: the one place that knows their exceptions.

Clients tell the same failure in many ways. botocore and azure-core raise what is no ``OSError`` when a connection is
refused; fsspec's HTTP file system says "not found" whatever went wrong; aiohttp's errors about a torn body carry a
``code`` of 400 that no server sent. Classes are compared by name, so that no client is imported for it.
"""

from __future__ import annotations

import email.utils
import enum
import errno
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any

from vidray.storage.redaction import redact


class Failure(enum.Enum):
    """Why a request to a store failed."""

    OUTAGE = "outage"
    """The store cannot be reached, does not answer, or breaks off: the same request may succeed later."""
    ACCESS_DENIED = "access denied"
    """The store forbids it, or does not know the caller: credentials are missing, wrong or expired."""
    NOT_FOUND = "not found"
    PRECONDITION = "precondition"
    """The object is not in the version that was asked for, or is there already."""
    LASTING = "lasting"
    """The same request will fail again, and none of the above is the reason."""


_DENIED_CLASSES = frozenset(
    {
        "azure.core.exceptions.ClientAuthenticationError",
        "botocore.exceptions.CredentialRetrievalError",
        "botocore.exceptions.LoginError",
        "botocore.exceptions.NoAuthTokenError",
        "botocore.exceptions.NoCredentialsError",
        "botocore.exceptions.PartialCredentialsError",
        "botocore.exceptions.SSOError",
        "botocore.exceptions.TokenRetrievalError",
        "google.auth.exceptions.DefaultCredentialsError",
        "google.auth.exceptions.RefreshError",
    }
)
_OUTAGE_CLASSES = frozenset(
    {
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "azure.core.exceptions.IncompleteReadError",
        "azure.core.exceptions.ServiceRequestError",
        "azure.core.exceptions.ServiceResponseError",
        "botocore.exceptions.ChecksumError",
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.FlexibleChecksumError",
        "botocore.exceptions.HTTPClientError",
        "botocore.exceptions.IncompleteReadError",
        "botocore.exceptions.MetadataRetrievalError",
        "botocore.parsers.ResponseParserError",
        "gcsfs.retry.ChecksumError",
        "google.auth.exceptions.TransportError",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.Timeout",
        "requests.exceptions.ChunkedEncodingError",
    }
)
_LASTING_CLASSES = frozenset(
    {
        "aiohttp.client_exceptions.InvalidURL",
        "aiohttp.client_exceptions.RedirectClientError",
        "aiohttp.client_exceptions.TooManyRedirects",
        "botocore.exceptions.ParamValidationError",
        "vidray.storage.redirects.RefusedRedirectError",
    }
)
_CLASSES = (
    *((name, Failure.LASTING) for name in sorted(_LASTING_CLASSES)),
    *((name, Failure.ACCESS_DENIED) for name in sorted(_DENIED_CLASSES)),
    *((name, Failure.OUTAGE) for name in sorted(_OUTAGE_CLASSES)),
)

_S3_CODES = {
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"),
        Failure.ACCESS_DENIED,
    ),
    **dict.fromkeys(("InternalError", "RequestTimeout", "SlowDown", "ServiceUnavailable"), Failure.OUTAGE),
}
"""Codes in S3's answers that say more than their HTTP status, 400 as a rule."""

_OUTAGE_STATUSES = frozenset({408, 425, 429})
_LASTING_STATUSES = frozenset({501, 505})
_LASTING_NUMBERS = frozenset(
    {
        *(errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ELOOP, errno.EMLINK, errno.ENAMETOOLONG, errno.ENOSPC),
        *(errno.ENOSYS, errno.ENOTEMPTY, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS, errno.EXDEV),
    }
)
_CLIENTS = ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs")


def classify(error: BaseException) -> Failure | None:
    """What an error of a store means; None if it is no store's, but a mistake of the programmer.

    An error of a store that is not known to last counts as an outage.
    """
    links = list(error_chain(error))
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in links):
        return Failure.LASTING
    if any("aiohttp.http_exceptions.HttpProcessingError" in _class_names(link) for link in links):
        return Failure.OUTAGE  # a torn or garbled answer; the status that aiohttp makes of it comes from no server
    told = next((failure for link in links if (failure := _of_client(link)) is not None), None)
    own = _of_builtin(error)
    if own is None:
        return told or _of_other(error)
    # fsspec's HTTP file system says "not found" for whatever its last attempt met.
    return told if own is Failure.NOT_FOUND and told is not None else own


def is_outage(error: BaseException) -> bool:
    """True if the same request may succeed later."""
    return classify(error) is Failure.OUTAGE


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a store answered with, or None if the error does not come from an answer."""
    return next((status for link in error_chain(error) if (status := _status(link)) is not None), None)


def retry_after_seconds(error: BaseException) -> float:
    """How long the store asks to be left alone (``Retry-After`` of its answer); 0 if it does not ask."""
    for link in error_chain(error):
        headers = {str(name).lower(): value for name, value in _headers(link).items()}
        if text := headers.get("retry-after"):
            return _parse_retry_after(str(text))
    return 0.0


def describe(error: BaseException) -> str:
    """The error on one line, for messages, without the secrets of URLs in it."""
    text = redact(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _of_client(link: BaseException) -> Failure | None:
    """What one link of the chain says by its client's own means: its class, a code, an HTTP status."""
    names = _class_names(link)
    for name, failure in _CLASSES:
        if name in names:
            return failure
    response = getattr(link, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    if code in _S3_CODES:
        return _S3_CODES[code]
    if type(link) is OSError and str(link).startswith("Forbidden: "):  # how gcsfs tells a 403
        return Failure.ACCESS_DENIED
    if type(link) is ValueError and str(link).startswith("Bad Request: "):  # how gcsfs tells some others
        return Failure.LASTING
    status = _status(link)
    return None if status is None else _of_status(status)


def _class_names(link: BaseException) -> set[str]:
    return {f"{base.__module__}.{base.__qualname__}" for base in type(link).__mro__}


def _of_status(status: int) -> Failure:
    if status in (401, 403, 407):
        return Failure.ACCESS_DENIED
    if status in (404, 410):
        return Failure.NOT_FOUND
    if status == 412:
        return Failure.PRECONDITION
    is_outage = status in _OUTAGE_STATUSES or (status >= 500 and status not in _LASTING_STATUSES)
    return Failure.OUTAGE if is_outage else Failure.LASTING


def _of_builtin(error: BaseException) -> Failure | None:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return Failure.NOT_FOUND
        case FileExistsError():
            return Failure.PRECONDITION
        case PermissionError():
            return Failure.ACCESS_DENIED
        case IsADirectoryError():
            return Failure.LASTING
    return None


def _of_other(error: BaseException) -> Failure | None:
    if isinstance(error, socket.gaierror):  # its numbers are no errno
        return Failure.OUTAGE
    if isinstance(error, OSError):
        return Failure.LASTING if error.errno in _LASTING_NUMBERS else Failure.OUTAGE
    is_clients = any(base.__module__.split(".")[0] in _CLIENTS for base in type(error).__mro__)
    return Failure.LASTING if is_clients else None


def _status(link: BaseException) -> int | None:
    """botocore keeps it in ``response``, aiohttp in ``status``, Azure in ``status_code``, gcsfs in ``code``."""
    response = getattr(link, "response", None)
    if isinstance(response, dict) and "ResponseMetadata" in response:
        return response["ResponseMetadata"].get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):
        value = getattr(link, name, None)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, int) and 100 <= value < 600:
            return int(value)
    return None


def _headers(link: BaseException) -> Mapping[str, Any]:
    response = getattr(link, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPHeaders") or {}
    headers = getattr(link, "headers", None) or getattr(response, "headers", None)
    return headers if isinstance(headers, Mapping) else {}


def _parse_retry_after(text: str) -> float:
    """``Retry-After`` is a number of seconds or a date. What is neither counts as 0."""
    try:
        if text.strip().isdigit():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
