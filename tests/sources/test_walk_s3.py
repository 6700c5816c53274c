"""Many threads page through a bucket and find every key once, whatever the keys look like."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.stores import filesystem
from vidray.errors import RunError
from vidray.sources.patterns import VideosOnly
from vidray.sources.rows import RowCollector
from vidray.sources.task_pool import TaskPool
from vidray.sources.walk_s3 import S3Walk, middle_key
from vidray.storage.location import Location


class StubBucket:
    """Answers list requests for keys in memory, as S3 does."""

    def __init__(self, keys: list[str], page: int, *, is_ordered: bool = True, fails_at: str | None = None) -> None:
        self.keys = sorted(keys) if is_ordered else keys
        self.page = page
        self.is_ordered = is_ordered
        self.fails_at = fails_at
        self.num_requests = 0

    def call_s3(self, method: str, *, Bucket: str, Prefix: str, MaxKeys: int, **where: str) -> dict:
        self.num_requests += 1
        keys = [key for key in self.keys if key.startswith(Prefix)]
        if self.is_ordered:
            keys = [key for key in keys if key > where.get("StartAfter", "")]
        at = int(where.get("ContinuationToken", 0))
        found = keys[at : at + self.page]
        if self.fails_at in found:
            raise PermissionError("Access Denied")
        contents = [{"Key": key, "Size": len(key), "ETag": f'"{key}"'} for key in found]
        is_truncated = at + self.page < len(keys)
        return {"Contents": contents, "IsTruncated": is_truncated, "NextContinuationToken": str(at + self.page)}


def walk_s3(fs: Any, bucket: str = "b", num_threads: int = 4, keys_per_page: int = 1000) -> list[str]:
    """The URIs that the S3 walk finds in the folder ``v``, sorted."""
    tables: list[pa.Table] = []
    rows = RowCollector(tables.append)
    folder = Location(kind="s3", fs=fs, path=f"{bucket}/v", root="s3://")
    with TaskPool(num_threads) as tasks:
        S3Walk(folder=folder, keep=VideosOnly(), rows=rows, tasks=tasks, keys_per_page=keys_per_page).start()
        tasks.join()
    rows.flush()
    return sorted(uri for table in tables for uri in table["uri"].to_pylist())


class TestS3Walk:
    @settings(deadline=None)  # the machine may be busy
    @given(st.sets(st.text("abz01/é\U0001f600 ", min_size=1, max_size=6), max_size=60), st.integers(1, 7))
    def test_ranges_together_hold_every_key_once(self, names: set[str], page: int) -> None:
        keys = [f"v/{name}x.mp4" for name in names]
        bucket = StubBucket([*keys, "u/x.mp4", "w/x.mp4"], page)
        assert walk_s3(bucket) == sorted(f"s3://b/{key}" for key in keys)

    def test_threads_share_a_flat_folder(self) -> None:
        bucket = StubBucket([f"v/2024-{i:06d}.mp4" for i in range(20_000)], 100)
        assert len(walk_s3(bucket, num_threads=8)) == 20_000
        assert bucket.num_requests < 1_000

    def test_a_store_that_lists_in_no_order_is_read_page_by_page(self) -> None:
        keys = [f"v/{(i * 37) % 100}.mp4" for i in range(100)]
        assert walk_s3(StubBucket(keys, 7, is_ordered=False)) == sorted(f"s3://b/{key}" for key in keys)

    def test_order_lost_on_the_way_is_an_error_not_a_gap(self) -> None:
        keys = [f"v/{i:03d}.mp4" for i in range(100)]
        bucket = StubBucket([*keys[:50], *reversed(keys[50:])], 10, is_ordered=False)
        with pytest.raises(RunError, match="does not list its keys in order"):
            walk_s3(bucket)

    def test_a_page_that_fails_fails_the_listing(self) -> None:
        bucket = StubBucket([f"v/{i:04d}.mp4" for i in range(1_000)], 10, fails_at="v/0777.mp4")
        with pytest.raises(PermissionError):
            walk_s3(bucket)

    def test_real_pages(self, s3_bucket: str) -> None:
        keys = [f"v/{i:03d}.mp4" for i in range(120)]
        fs, bucket = filesystem(s3_bucket)
        for key in [*keys, "u.mp4", "v.mp4", "w/x.mp4"]:
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"")
        assert walk_s3(fs, bucket, keys_per_page=7) == [f"{s3_bucket}/{key}" for key in keys]

    @given(st.text(max_size=5), st.one_of(st.none(), st.text(max_size=8)))
    def test_a_middle_key_lies_between(self, low: str, high: str | None) -> None:
        if high is not None and high <= low:
            low, high = high, low + "x"
        middle = middle_key(low, high, common=0)
        if middle is not None:
            assert low < middle
            assert high is None or middle < high

    def test_middles_are_found_for_common_names(self) -> None:
        assert middle_key("v/a", None, common=2) == "v/p"
        assert middle_key("v/2024-000123", "v/2024-9", common=2) == "v/2024-5"
        assert middle_key("v/a5", "v/b", common=2) == "v/aZ"
