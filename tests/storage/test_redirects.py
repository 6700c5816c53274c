"""Redirects are followed to https on public addresses only, unless the source itself is private."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import yarl

from tests.support.faulty_server import answer, faulty_server, replies
from vidray.errors import VideoError
from vidray.storage import redirects
from vidray.storage.failures import Failure, classify
from vidray.storage.fetch import fetch
from vidray.storage.redirects import RefusedRedirectError
from vidray.types import Limits, Status, VideoRef

PUBLIC, OTHER = "http://93.184.216.34/v", "https://93.184.216.35/v"


def follow(source: str, target: str) -> None:
    reply = SimpleNamespace(url=yarl.URL(source), headers={"Location": target})
    asyncio.run(redirects._check(None, SimpleNamespace(), SimpleNamespace(response=reply)))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (PUBLIC, OTHER),
        (PUBLIC, "/other"),
        (OTHER, "https://93.184.216.34/cdn?X-Amz-Signature=1"),
        ("http://127.0.0.1:1/v", "http://127.0.0.1:2/v"),
        ("http://10.0.0.1/v", "http://192.168.0.1/v"),
    ],
)
def test_allowed(source: str, target: str) -> None:
    follow(source, target)


@pytest.mark.parametrize(
    "target",
    [
        "http://93.184.216.35/v",
        "https://127.0.0.1/v",
        "https://localhost/v",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1.2.3/v",
        "https://192.168.1.1/v",
        "https://[::1]/v",
        "https://[fe80::1]/v",
        "https://0.0.0.0/v",
        "file:///etc/passwd",
        "ftp://93.184.216.35/v",
    ],
)
def test_refused(target: str) -> None:
    with pytest.raises(RefusedRedirectError) as caught:
        follow(PUBLIC, target)
    assert classify(caught.value) is Failure.LASTING


def test_https_is_not_left_for_http() -> None:
    with pytest.raises(RefusedRedirectError):
        follow("https://93.184.216.34/v", "http://93.184.216.34/v")


def test_no_secret_is_shown() -> None:
    with pytest.raises(RefusedRedirectError) as caught:
        follow(f"{PUBLIC}?token=5ec2e7", "https://me:5ec2e7@10.0.0.1/v?sig=5ec2e7")
    assert "5ec2e7" not in str(caught.value)


def test_a_real_server_that_redirects_to_a_file_is_asked_once() -> None:
    with faulty_server(replies(answer(302, headers="Location: file:///etc/passwd\r\n"))) as (address, times):
        with pytest.raises(VideoError, match="redirects to file:") as caught:
            fetch(VideoRef(uri=f"http://{address}/v.mp4"), limits=Limits(fetch_deadline_seconds=20))
        assert caught.value.status == Status.FETCH_FAILED
        assert not caught.value.is_outage
    assert len(times) == 1


def test_a_real_public_server_cannot_send_us_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    private = redirects._is_public

    async def first_is_public(url) -> bool:
        return url.path == "/v.mp4" or await private(url)

    monkeypatch.setattr(redirects, "_is_public", first_is_public)
    handle = replies(answer(302, headers="Location: https://127.0.0.1/secret\r\n"))
    with (
        faulty_server(handle) as (address, _),
        pytest.raises(VideoError, match="redirects to a private address"),
    ):
        fetch(VideoRef(uri=f"http://{address}/v.mp4"), limits=Limits(fetch_deadline_seconds=20))
