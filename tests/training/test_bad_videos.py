"""Bad videos are listed, and fail the run above a rate."""

from __future__ import annotations

import pyarrow as pa
import pytest

from vidray.errors import TooManyFailuresError
from vidray.training.data.bad_videos import BAD_VIDEOS_SCHEMA, BadVideo, bad_videos_table, check_failure_rate

BAD_VIDEOS = {9: BadVideo(status="corrupt", message="damaged"), 2: BadVideo(status="not_found", message="")}


def test_bad_videos_are_listed_in_the_order_of_the_table() -> None:
    rows = [{"uri": f"{number:02d}.mp4", "label": "ab"[number % 2], "split": "train"} for number in range(14)]
    table = pa.Table.from_pylist(rows)
    listed = bad_videos_table(table, BAD_VIDEOS)
    assert listed.schema == BAD_VIDEOS_SCHEMA
    assert [tuple(row.values()) for row in listed.to_pylist()] == [
        ("02.mp4", "a", "train", "not_found", ""),
        ("09.mp4", "b", "train", "corrupt", "damaged"),
    ]
    assert bad_videos_table(table, {}).schema == BAD_VIDEOS_SCHEMA


def test_too_many_bad_videos_are_refused_and_counted_by_status() -> None:
    check_failure_rate(BAD_VIDEOS, num_videos=40, max_rate=0.05)
    with pytest.raises(TooManyFailuresError, match=r"2 of 39 training videos are bad \(1 corrupt, 1 not_found\)"):
        check_failure_rate(BAD_VIDEOS, num_videos=39, max_rate=0.05)
