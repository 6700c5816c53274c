"""What the real clients raise when a store fails, met on loopback, means what it should."""

from __future__ import annotations

import base64
import errno
import importlib.util
import types
from pathlib import Path

import fsspec
import pytest

from tests.support.faulty_server import (
    answer,
    drips,
    expired_certificate,
    faulty_server,
    free_port,
    hangs,
    replies,
    resets,
    stalls,
)
from vidray.storage import location
from vidray.storage.failures import Failure, classify, retry_after_seconds
from vidray.storage.location import Location, locate

_S3_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>no</Message></Error>"


def s3_error(status: int, code: str) -> bytes:
    return answer(status, headers="Content-Type: application/xml\r\n", body=_S3_ERROR.format(code).encode())


FAULTS = {
    "resets": (resets, Failure.OUTAGE),
    "hangs": (hangs, Failure.OUTAGE),
    "stalls": (stalls, Failure.OUTAGE),
    "torn": (drips(5, every_seconds=0.0, promised=1000), Failure.OUTAGE),
    "garbage": (replies(b"what?\r\n\r\n"), Failure.OUTAGE),
    "408": (replies(answer(408)), Failure.OUTAGE),
    "429": (replies(answer(429, headers="Retry-After: 7\r\n")), Failure.OUTAGE),
    "500": (replies(answer(500)), Failure.OUTAGE),
    "503": (replies(answer(503, headers="Retry-After: 7\r\n")), Failure.OUTAGE),
    "400": (replies(answer(400)), Failure.LASTING),
    "401": (replies(answer(401)), Failure.ACCESS_DENIED),
    "403": (replies(answer(403)), Failure.ACCESS_DENIED),
    "404": (replies(answer(404)), Failure.NOT_FOUND),
    "412": (replies(answer(412)), Failure.PRECONDITION),
}
CLIENTS = ["s3", "azure", "http", "gcs"]


@pytest.fixture
def fresh_clients(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Clients that read their settings anew, and lose patience after half a second."""
    monkeypatch.setattr(location, "_instances", {})
    monkeypatch.setattr(location, "CONNECT_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(location, "SILENCE_TIMEOUT_SECONDS", 0.5)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def place_at(client: str, address: str, patch: pytest.MonkeyPatch, *, scheme: str = "http") -> Location:
    """An object as ``client`` sees it at a server."""
    if client == "s3":
        for name, value in (("ENDPOINT_URL", f"{scheme}://{address}"), ("ACCESS_KEY_ID", "k")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        return locate("s3://bucket/v.mp4")
    if client == "azure":
        key = base64.b64encode(b"key").decode()
        account = f"DefaultEndpointsProtocol={scheme};AccountName=me;AccountKey={key}"
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{account};BlobEndpoint={scheme}://{address}/me;")
        return locate("az://container/v.mp4")
    if client == "gcs":
        if importlib.util.find_spec("gcsfs") is None:
            pytest.skip("gcsfs is not installed")
        patch.setenv("STORAGE_EMULATOR_HOST", f"{scheme}://{address}")
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks Google what kind of bucket it is
        import gcsfs.retry

        patch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=_no_sleep))
        return locate("gs://bucket/v.mp4")
    return locate(f"{scheme}://{address}/v.mp4")


async def _no_sleep(_: float) -> None:
    """gcsfs tries six times by itself, with pauses that nothing sets."""


def error_of(place: Location) -> Exception:
    with pytest.raises(Exception) as caught:
        place.fs.cat_file(place.path)
    return caught.value


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_client_raises_is_understood(fresh_clients: pytest.MonkeyPatch, client: str, fault: str) -> None:
    handle, failure = FAULTS[fault]
    with faulty_server(handle) as (address, _):
        error = error_of(place_at(client, address, fresh_clients))
    assert classify(error) is failure, repr(error)
    if fault in ("429", "503") and client != "gcs":  # gcsfs drops the headers
        assert retry_after_seconds(error) == 7


@pytest.mark.parametrize("client", CLIENTS)
def test_a_refused_connection_is_an_outage(fresh_clients: pytest.MonkeyPatch, client: str) -> None:
    error = error_of(place_at(client, f"127.0.0.1:{free_port()}", fresh_clients))
    assert classify(error) is Failure.OUTAGE, repr(error)


@pytest.mark.parametrize("client", ["s3", "azure", "http"])
def test_an_expired_certificate_lasts(fresh_clients: pytest.MonkeyPatch, client: str, tmp_path: Path) -> None:
    with faulty_server(replies(answer(200)), tls=expired_certificate(tmp_path)) as (address, _):
        error = error_of(place_at(client, address, fresh_clients, scheme="https"))
    assert classify(error) is Failure.LASTING, repr(error)
    assert "certificate" in str(error)


@pytest.mark.parametrize(
    ("status", "code", "failure"),
    [
        (400, "ExpiredToken", Failure.ACCESS_DENIED),
        (400, "InvalidToken", Failure.ACCESS_DENIED),
        (403, "InvalidAccessKeyId", Failure.ACCESS_DENIED),
        (403, "RequestTimeTooSkewed", Failure.ACCESS_DENIED),
        (400, "RequestTimeout", Failure.OUTAGE),
        (503, "SlowDown", Failure.OUTAGE),
        (500, "InternalError", Failure.OUTAGE),
        (404, "NoSuchBucket", Failure.NOT_FOUND),
        (412, "PreconditionFailed", Failure.PRECONDITION),
        (501, "NotImplemented", Failure.LASTING),
        (400, "InvalidArgument", Failure.LASTING),
    ],
)
def test_codes_of_s3(fresh_clients: pytest.MonkeyPatch, status: int, code: str, failure: Failure) -> None:
    with faulty_server(replies(s3_error(status, code))) as (address, _):
        place = place_at("s3", address, fresh_clients)
        with pytest.raises(Exception) as caught:
            place.fs.call_s3("get_object", Bucket="bucket", Key="v.mp4")  # an answer to HEAD would have no code
    error = caught.value
    assert classify(error) is failure, repr(error)


def test_missing_credentials_of_s3_deny_access(fresh_clients: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = place_at("s3", "127.0.0.1:1", fresh_clients)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        fresh_clients.delenv(name)
    fresh_clients.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        fresh_clients.setenv(name, str(tmp_path / "none"))
    fresh_clients.setattr(location, "_instances", {})
    place = locate("s3://bucket/v.mp4")
    error = error_of(place)
    assert type(error).__name__ == "NoCredentialsError"
    assert classify(error) is Failure.ACCESS_DENIED


def test_a_date_may_say_when_to_come_back() -> None:
    class AnswerError(Exception):
        headers = {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}  # noqa: RUF012

    assert retry_after_seconds(AnswerError()) == 0
    assert retry_after_seconds(ValueError()) == 0


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OSError(errno.ENOSPC, "full"), Failure.LASTING),
        (OSError(errno.ESTALE, "stale"), Failure.OUTAGE),
        (OSError(errno.EIO, "input/output error"), Failure.OUTAGE),
        (ConnectionResetError(), Failure.OUTAGE),
        (TimeoutError(), Failure.OUTAGE),
        (PermissionError(), Failure.ACCESS_DENIED),
        (NotADirectoryError(), Failure.NOT_FOUND),
        (FileExistsError(), Failure.PRECONDITION),
        (TypeError(), None),
        (KeyError("a"), None),
    ],
)
def test_errors_of_the_operating_system(error: Exception, failure: Failure | None) -> None:
    assert classify(error) is failure
