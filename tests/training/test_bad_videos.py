"""Bad videos are listed, and fail the run above a rate."""

from __future__ import annotations

import pyarrow as pa
import pytest

from vidray.errors import TooManyFailuresError
from vidray.training.data.bad_videos import BAD_VIDEOS_SCHEMA, BadVideo, bad_videos_table, check_failure_rate

BAD_VIDEOS = {9: BadVideo(status="corrupt", message="damaged"), 2: BadVideo(status="not_found", message="")}


def rows_of(num_videos: int) -> pa.Table:
    rows = [{"uri": f"{number:02d}.mp4", "label": "ab"[number % 2], "split": "train"} for number in range(num_videos)]
    return pa.Table.from_pylist(rows)


def test_bad_videos_are_listed_in_the_order_of_the_table() -> None:
    table = rows_of(14)
    listed = bad_videos_table(table, BAD_VIDEOS)
    assert listed.schema == BAD_VIDEOS_SCHEMA
    assert [tuple(row.values()) for row in listed.to_pylist()] == [
        ("02.mp4", "a", "train", "not_found", ""),
        ("09.mp4", "b", "train", "corrupt", "damaged"),
    ]
    assert bad_videos_table(table, {}).schema == BAD_VIDEOS_SCHEMA


def test_too_many_bad_videos_are_refused_and_counted_by_status() -> None:
    kept = []
    check_failure_rate(rows_of(40), BAD_VIDEOS, max_rate=0.05, what="training", keep=kept.append)
    assert not kept
    with pytest.raises(
        TooManyFailuresError, match=r"2 of 39 training videos are bad \(1 corrupt, 1 not_found\)"
    ) as raised:
        check_failure_rate(rows_of(39), BAD_VIDEOS, max_rate=0.05, what="training", keep=kept.append)
    assert str(raised.value).endswith("Such as:\n  02.mp4: not_found: \n  09.mp4: corrupt: damaged")
    assert kept == [bad_videos_table(rows_of(39), BAD_VIDEOS)]


def test_five_bad_videos_are_named_and_where_all_are_listed() -> None:
    bad = {row: BadVideo(status="corrupt", message="damaged") for row in range(8)}
    with pytest.raises(TooManyFailuresError) as raised:
        check_failure_rate(rows_of(8), bad, max_rate=0.5, what="training", keep=lambda table: "/out/bad_videos.parquet")
    assert "All are listed in /out/bad_videos.parquet, such as:\n  00.mp4" in str(raised.value)
    assert str(raised.value).count("damaged") == 5
