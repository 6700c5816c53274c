"""Members that lie side by side come with one request, each as it would come alone."""

from __future__ import annotations

import random

import pytest

from tests.sources.test_tar_shards import make_tar
from tests.support.range_server import RangeServer
from tests.support.stores import on_every_store, overwrite
from vidray.errors import VideoError
from vidray.sources.manifest import list_sources
from vidray.sources.rows import video_of
from vidray.storage.fetch import fetch
from vidray.storage.neighbours import MAX_BYTES, fetch_together, group_neighbours
from vidray.storage.store import Store
from vidray.types import Limits, Status, VideoRef


def listed(*sources: str) -> list[VideoRef]:
    """The members of tar files as they lie there."""
    rows = sorted(list_sources(sources).to_pylist(), key=lambda row: (row["etag"], row["tar_member"]["offset"]))
    return [video_of(row) for row in rows]


def alone(ref: VideoRef, limits: Limits) -> bytes | Status:
    try:
        return fetch(ref, limits=limits)
    except VideoError as error:
        return error.status


def together(refs: list[VideoRef], limits: Limits | None = None) -> list[bytes | Status]:
    found = [
        one
        for group in group_neighbours(refs)
        for one in (
            fetch_together(group, limits=limits or Limits()) if len(group) > 1 else [fetch(group[0], limits=Limits())]
        )
    ]
    return [one.status if isinstance(one, VideoError) else one for one in found]


@on_every_store
def test_each_has_its_own_bytes(folder: str) -> None:
    rng = random.Random(0)
    data = [rng.randbytes(rng.choice([1, 511, 512, 513, 40_000])) for _ in range(60)]
    Store(folder).create("0.tar", make_tar(*((f"{n}.mp4", video) for n, video in enumerate(data))))
    refs = listed(f"{folder}/0.tar")
    assert len(group_neighbours(refs)) == 1
    assert together(refs) == data
    overwrite(folder, "0.tar", make_tar(("new.mp4", b"new")))
    assert together(refs) == [Status.CHANGED] * 60


def test_many_small_ones_take_one_request() -> None:
    members = [(f"{n:02d}.{end}", bytes([n]) * 3_000) for n in range(50) for end in ("mp4", "json")]
    with RangeServer({"0.tar": make_tar(*members)}) as server:
        refs = listed(f"{server.url}/0.tar")
        before = server.num_requests
        assert together(refs) == [bytes([n]) * 3_000 for n in range(50)]
        assert server.num_requests - before == 1


def test_what_is_fetched_together_is_bounded_and_of_one_tar() -> None:
    large = bytes(MAX_BYTES // 3)
    first = make_tar(*((f"{n}.mp4", large) for n in range(5)), ("far.json", bytes(100_000)), ("far.mp4", b"x"))
    with RangeServer({"0.tar": first, "1.tar": make_tar(("a.mp4", b"1"), ("b.mp4", b"2"))}) as server:
        refs = [*listed(f"{server.url}/0.tar"), *listed(f"{server.url}/1.tar")]
    assert [[ref.uri.rpartition("/")[2] for ref in group] for group in group_neighbours(refs)] == [
        ["0.tar#0.mp4", "0.tar#1.mp4"],
        ["0.tar#2.mp4", "0.tar#3.mp4"],
        ["0.tar#4.mp4"],
        ["0.tar#far.mp4"],
        ["1.tar#a.mp4", "1.tar#b.mp4"],
    ]
    assert [len(group) for group in group_neighbours(refs[::-1])] == [1] * 8, "out of order"
    assert [len(group) for group in group_neighbours([*refs[-1:], *refs[-1:], VideoRef(uri="/a.mp4")])] == [1] * 3


def test_a_member_that_was_found_damaged_is_no_neighbour(tmp_path) -> None:
    data = make_tar(*((f"{n}.mp4", b"video") for n in range(3)))
    (tmp_path / "0.tar").write_bytes(data[: 512 * 5 + 2])
    refs = listed(f"{tmp_path}/0.tar")
    assert [len(group) for group in group_neighbours(refs)] == [1, 2, 1]


def test_where_one_fails_each_has_its_own_status(tmp_path) -> None:
    (tmp_path / "0.tar").write_bytes(make_tar(("a.mp4", bytes(100)), ("b.mp4", bytes(2_000)), ("c.mp4", b"c")))
    refs, limits = listed(f"{tmp_path}/0.tar"), Limits(max_object_bytes=1_000)
    assert together(refs, limits) == [alone(ref, limits) for ref in refs] == [bytes(100), Status.TOO_LARGE, b"c"]


@pytest.mark.parametrize("num_failures", [1, 1_000])
def test_a_store_that_is_away_is_waited_for_once(num_failures: int) -> None:
    limits = Limits(fetch_deadline_seconds=2.0 if num_failures > 1 else 60.0)
    asked: list[int] = []
    with RangeServer({"0.tar": make_tar(*((f"{n}.mp4", b"video") for n in range(20)))}) as server:
        refs = listed(f"{server.url}/0.tar")

        def fail(start: int, stop: int) -> None:
            asked.append(stop - start)
            if len(asked) <= num_failures:
                raise ConnectionError("cut off")

        server.on_range = fail
        expected = [b"video"] * 20 if num_failures == 1 else [Status.FETCH_FAILED] * 20
        assert together(refs, limits) == expected
    assert len(set(asked)) == 1, "no member alone"


def test_a_store_that_gives_no_ranges_is_told_of_each() -> None:
    with RangeServer({"0.tar": make_tar(("a.mp4", b"1"), ("b.mp4", b"2"))}) as server:
        refs = listed(f"{server.url}/0.tar")
        server.has_ranges = False
        assert together(refs) == [Status.FETCH_FAILED] * 2
