"""Stores that go away for a while, hang, drip and tear: fetching, writing and the lease outlast it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.faulty_server import Outage, answer, drips, faulty_server, free_port, hangs, replies, stalls
from tests.support.servers import Server
from vidray.errors import RunError, UsageError, VideoError
from vidray.sources.manifest import list_sources
from vidray.storage import fetch as fetch_module
from vidray.storage import location
from vidray.storage.fetch import fetch
from vidray.storage.lease import Lease, LeaseLostError
from vidray.storage.localize import localize
from vidray.storage.location import locate
from vidray.storage.store import Store
from vidray.types import Limits, Status, VideoRef


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that wait half a second for a connection and for the next byte."""
    monkeypatch.setattr(location, "_instances", {})
    for module in (location, fetch_module):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_SECONDS", 0.5)
        monkeypatch.setattr(module, "SILENCE_TIMEOUT_SECONDS", 0.5)


@pytest.fixture
def outage(
    s3_server: Server, s3_bucket: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Outage]]:
    """A bucket, and the proxy through which it is reached."""
    proxy = Outage(s3_server.endpoint.removeprefix("http://"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield s3_bucket, proxy
    proxy.go_away()


def later(seconds: float, proxy: Outage) -> threading.Timer:
    timer = threading.Timer(seconds, proxy.come_back)
    timer.start()
    return timer


def fetch_from(address: str, *, deadline: float) -> bytes:
    return fetch(VideoRef(uri=f"http://{address}/v.mp4"), limits=Limits(fetch_deadline_seconds=deadline))


class TestFetch:
    @pytest.mark.parametrize("handle", [hangs, stalls])
    def test_a_server_that_hangs_holds_an_object_no_longer_than_the_deadline(self, impatient, handle) -> None:
        started = time.monotonic()
        with faulty_server(handle) as (address, times), pytest.raises(VideoError) as caught:
            fetch_from(address, deadline=1.5)
        assert 1.5 <= time.monotonic() - started < 2.5
        assert len(times) >= 2
        assert caught.value.status == Status.FETCH_FAILED
        assert caught.value.is_outage

    @pytest.mark.usefixtures("impatient")
    def test_a_hanging_server_is_left_at_a_deadline_shorter_than_the_silence_allowed(self) -> None:
        started = time.monotonic()
        with faulty_server(hangs) as (address, _), pytest.raises(VideoError, match="sent nothing for"):
            fetch_from(address, deadline=0.2)
        assert time.monotonic() - started < 0.8

    @pytest.mark.usefixtures("impatient")
    def test_bytes_that_drip_for_longer_than_the_deadline_arrive(self) -> None:
        with faulty_server(drips(12, every_seconds=0.2)) as (address, times):
            assert fetch_from(address, deadline=1) == b"x" * 12
        assert len(times) == 1

    @pytest.mark.usefixtures("impatient")
    def test_a_torn_body_is_fetched_again(self) -> None:
        num_requests = 0

        def tears_twice(connection) -> None:
            nonlocal num_requests
            num_requests += 1
            drips(5, every_seconds=0.0, promised=5 if num_requests > 2 else 9)(connection)

        with faulty_server(tears_twice) as (address, _):
            assert fetch_from(address, deadline=20) == b"xxxxx"
        assert num_requests == 3

    @pytest.mark.usefixtures("impatient")
    def test_one_missing_object_is_no_outage(self) -> None:
        with faulty_server(replies(answer(404))) as (address, _), pytest.raises(VideoError) as caught:
            fetch_from(address, deadline=5)
        assert caught.value.status == Status.NOT_FOUND
        assert not caught.value.is_outage

    def test_an_object_on_s3_outlasts_an_outage(self, outage: tuple[str, Outage]) -> None:
        bucket, proxy = outage
        Store(bucket).create("v.mp4", b"12345")
        proxy.go_away()
        timer = later(2, proxy)
        assert fetch(VideoRef(uri=f"{bucket}/v.mp4"), limits=Limits(fetch_deadline_seconds=60)) == b"12345"
        timer.join()

    @pytest.mark.usefixtures("impatient")
    @pytest.mark.parametrize("handle", [hangs, stalls])
    def test_s3_that_hangs_is_left_at_the_deadline(self, monkeypatch: pytest.MonkeyPatch, handle) -> None:
        for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        started = time.monotonic()
        with faulty_server(handle) as (address, _):
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
            with pytest.raises(VideoError) as caught:
                fetch(VideoRef(uri="s3://bucket/v.mp4"), limits=Limits(fetch_deadline_seconds=1.5))
        assert caught.value.is_outage
        assert time.monotonic() - started < 3


class TestStore:
    def test_reads_and_writes_outlast_an_outage(self, outage: tuple[str, Outage]) -> None:
        bucket, proxy = outage
        store = Store(f"{bucket}/out").with_deadline(60)
        store.create("a", b"1")
        for work in (lambda: store.create("b", b"2"), lambda: store.read("a"), store.list, lambda: store.exists("a")):
            proxy.go_away()
            timer = later(1, proxy)
            work()
            timer.join()
        assert store.list() == ["a", "b"]

    def test_an_outage_beyond_the_deadline_is_a_run_error_on_one_line(self, outage: tuple[str, Outage]) -> None:
        bucket, proxy = outage
        store = Store(f"{bucket}/out").with_deadline(0.5)
        proxy.go_away()
        for work in (
            lambda: store.create("b", b"2"),
            lambda: store.read("a"),
            lambda: store.list(),
            lambda: store.exists("a"),
            lambda: store.delete("a"),
            lambda: store.probe(),
        ):
            with pytest.raises(RunError, match=rf"^cannot .*{bucket}/out.* \(the store is away\): Endpoint") as caught:
                work()
            assert "\n" not in str(caught.value)

    def test_what_is_missing_or_there_already_is_told_as_ever(self, outage: tuple[str, Outage]) -> None:
        store = Store(f"{outage[0]}/out")
        store.create("a", b"1")
        with pytest.raises(FileExistsError):
            store.create("a", b"2")
        with pytest.raises(FileNotFoundError):
            store.read("b")
        assert not store.exists("b")
        store.delete("b")

    def test_listing_and_checkpoints_tell_an_outage_from_a_mistake(self, outage: tuple[str, Outage], tmp_path) -> None:
        bucket, proxy = outage
        with pytest.raises(UsageError):
            localize(locate(f"{bucket}/nothing"), ["*.json"], tmp_path)
        proxy.go_away()
        with pytest.raises(RunError, match="the store is away"):
            localize(locate(f"{bucket}/model"), ["*.json"], tmp_path)
        with pytest.raises(RunError, match="the store is away"):
            list_sources([f"{bucket}/videos/"])
        with pytest.raises(RunError, match="the store is away"):
            list_sources([f"{bucket}/videos.csv"])

    @pytest.mark.usefixtures("impatient")
    def test_an_http_source_that_is_away_is_no_missing_one(self) -> None:
        with pytest.raises(RunError, match="the store is away"):
            list_sources([f"http://127.0.0.1:{free_port()}/v.mp4"])


class TestLease:
    def test_a_holder_outlasts_an_outage_longer_than_its_lease(self, outage: tuple[str, Outage]) -> None:
        bucket, proxy = outage
        with Lease(Store(bucket).with_deadline(60), ttl_seconds=1.2).held() as lease:
            proxy.go_away()
            time.sleep(3)
            later(0.5, proxy).join()
            lease.check()
            token = lease.token
            time.sleep(1.2)
            lease.check()
            assert lease.token > token, "the renewing thread is dead"

    def test_a_holder_stops_if_another_took_over_meanwhile(
        self, outage: tuple[str, Outage], s3_server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bucket, proxy = outage
        with Lease(Store(bucket).with_deadline(60), ttl_seconds=1.2).held() as lease:
            proxy.go_away()
            monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
            monkeypatch.setattr(location, "_instances", {})
            other = Store(bucket)
            holder = {"host": "elsewhere", "pid": 1, "boot": "another boot", "started": "1", "id": "x"}
            for number in range(lease.token + 1, lease.token + 3):
                other.create(f"_lease/{number:012d}.json", json.dumps(holder).encode())
            time.sleep(1.5)
            proxy.come_back()
            with pytest.raises(LeaseLostError, match="elsewhere"):
                lease.check()
        assert len(other.list("_lease")) >= 2, "the other's lease was released"

    def test_releasing_never_raises(self, outage: tuple[str, Outage]) -> None:
        bucket, proxy = outage
        with Lease(Store(bucket), ttl_seconds=1.0).held():
            proxy.go_away()
