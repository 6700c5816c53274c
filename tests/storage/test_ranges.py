"""Parts of an object are of the version that was listed, whatever the store; or a status says why there are none."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.support.faulty_server import Outage
from tests.support.range_server import RangeServer
from tests.support.servers import Server
from tests.support.stores import on_every_store, overwrite, ref_of
from vidray.errors import VideoError
from vidray.storage import location
from vidray.storage.fetch import RangesRefusedError, fetch_range
from vidray.storage.ranges import PAGE_BYTES, RangedObject, open_ranged
from vidray.storage.store import Store
from vidray.types import Limits, Status, VideoRef

DATA = os.urandom(3 * PAGE_BYTES + 5)
HASTY = Limits(fetch_deadline_seconds=0.5)


def status_of(source: RangedObject, start: int = 2 * PAGE_BYTES, stop: int = 2 * PAGE_BYTES + 9) -> Status:
    with pytest.raises(VideoError) as caught:
        source.read(start, stop)
    return caught.value.status


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer({"v.mp4": DATA}) as server:
        yield server


def opened(uri: str, limits: Limits = HASTY) -> RangedObject:
    source = open_ranged(ref_of(uri), limits=limits)
    assert isinstance(source, RangedObject)
    return source


@on_every_store
def test_parts_are_those_of_the_object_and_are_counted(folder: str) -> None:
    Store(folder).create("v.mp4", DATA)
    source = opened(f"{folder}/v.mp4", Limits())
    assert (source.size_bytes, source.bytes_fetched) == (len(DATA), PAGE_BYTES)
    assert source.read(3, 50) == DATA[3:50]
    assert source.bytes_fetched == PAGE_BYTES, "the first page is here already"
    for start, stop in ((PAGE_BYTES - 1, PAGE_BYTES + 1), (2 * PAGE_BYTES, len(DATA)), (len(DATA) - 1, len(DATA))):
        before = source.bytes_fetched
        assert source.read(start, stop) == DATA[start:stop]
        assert source.bytes_fetched - before == stop - start
    assert source.read_all() == DATA
    assert source.fetch_seconds > 0


@on_every_store
def test_an_object_that_is_replaced_between_two_parts_has_changed(folder: str) -> None:
    Store(folder).create("v.mp4", DATA)
    source = opened(f"{folder}/v.mp4")
    overwrite(folder, "v.mp4", DATA[::-1])
    assert status_of(source) == Status.CHANGED


@on_every_store
def test_an_object_that_is_deleted_between_two_parts_is_not_found(folder: str) -> None:
    store = Store(folder)
    store.create("v.mp4", DATA)
    source = opened(f"{folder}/v.mp4")
    store.delete("v.mp4")
    assert status_of(source) == Status.NOT_FOUND


@pytest.mark.parametrize("folder", ["local", "s3", "azure"], indirect=True)
def test_an_object_that_was_replaced_after_it_was_listed_is_not_opened(folder: str) -> None:
    Store(folder).create("v.mp4", DATA)
    ref = ref_of(f"{folder}/v.mp4")
    overwrite(folder, "v.mp4", b"short")
    with pytest.raises(VideoError) as caught:
        open_ranged(ref, limits=HASTY)
    assert caught.value.status == Status.CHANGED


def test_too_large_an_object_is_not_opened(server: RangeServer) -> None:
    with pytest.raises(VideoError) as caught:
        open_ranged(ref_of(f"{server.url}/v.mp4"), limits=Limits(max_object_bytes=len(DATA) - 1))
    assert caught.value.status == Status.TOO_LARGE


class TestHttp:
    def test_parts_are_asked_for(self, server: RangeServer) -> None:
        source = opened(f"{server.url}/v.mp4")
        assert source.read(2 * PAGE_BYTES, 2 * PAGE_BYTES + 9) == DATA[2 * PAGE_BYTES :][:9]
        assert server.bytes_sent == PAGE_BYTES + 9

    def test_a_change_between_two_parts_is_noticed(self, server: RangeServer) -> None:
        source = opened(f"{server.url}/v.mp4")
        server.etag = '"2"'
        assert status_of(source) == Status.CHANGED

    def test_a_change_to_something_shorter_is_noticed(self, server: RangeServer) -> None:
        source = opened(f"{server.url}/v.mp4")
        server.objects["v.mp4"], server.etag = DATA[:100], '"2"'
        assert status_of(source) == Status.CHANGED

    def test_a_server_that_knows_no_parts_gives_the_whole(self, server: RangeServer) -> None:
        server.has_ranges = False
        ref = ref_of(f"{server.url}/v.mp4")
        with pytest.raises(RangesRefusedError):
            fetch_range(ref, start=0, stop=9, limits=HASTY)
        assert open_ranged(ref, limits=HASTY) == DATA

    def test_a_server_that_no_longer_gives_parts_has_failed(self, server: RangeServer) -> None:
        source = opened(f"{server.url}/v.mp4")
        server.has_ranges = False
        assert status_of(source) == Status.FETCH_FAILED

    def test_a_part_that_breaks_off_is_asked_for_again(self, server: RangeServer) -> None:
        source, num_tries = opened(f"{server.url}/v.mp4", Limits()), 0

        def breaks_off_twice(start: int, stop: int) -> None:
            nonlocal num_tries
            num_tries += 1
            if num_tries <= 2:
                raise ConnectionResetError

        server.on_range = breaks_off_twice
        assert source.read(2 * PAGE_BYTES, len(DATA)) == DATA[2 * PAGE_BYTES :]
        assert num_tries == 3


def later(seconds: float, proxy: Outage) -> threading.Timer:
    timer = threading.Timer(seconds, proxy.come_back)
    timer.start()
    return timer


class TestS3Outage:
    @pytest.fixture
    def outage(
        self, s3_server: Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[str, Outage]]:
        monkeypatch.setattr(location, "_instances", {})
        proxy = Outage(s3_server.endpoint.removeprefix("http://"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield s3_bucket, proxy
        proxy.go_away()

    def test_a_part_outlasts_an_outage(self, outage: tuple[str, Outage]) -> None:
        bucket, proxy = outage
        Store(bucket).create("v.mp4", DATA)
        source = opened(f"{bucket}/v.mp4", Limits(fetch_deadline_seconds=60))
        proxy.go_away()
        timer = later(1, proxy)
        assert source.read(2 * PAGE_BYTES, len(DATA)) == DATA[2 * PAGE_BYTES :]
        timer.join()

    def test_an_outage_beyond_the_deadline_is_a_failed_fetch(self, outage: tuple[str, Outage]) -> None:
        bucket, proxy = outage
        Store(bucket).create("v.mp4", DATA)
        source = opened(f"{bucket}/v.mp4")
        proxy.go_away()
        with pytest.raises(VideoError) as caught:
            source.read(2 * PAGE_BYTES, len(DATA))
        assert (caught.value.status, caught.value.is_outage) == (Status.FETCH_FAILED, True)


def test_a_range_must_lie_within_the_object() -> None:
    for start, stop in ((0, 0), (-1, 3), (3, 2), (0, 6)):
        with pytest.raises(ValueError, match="bytes"):
            fetch_range(VideoRef(uri="v.mp4", size_bytes=5, etag="e"), start=start, stop=stop, limits=HASTY)
