"""Videos that cannot be used: why, the table that lists them, and when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from vidray.errors import TooManyFailuresError

BAD_VIDEOS_FILE = "bad_videos.parquet"
BAD_VIDEOS_SCHEMA = pa.schema([(name, pa.string()) for name in ("uri", "label", "split", "status", "error")])

KeepBadVideos = Callable[[pa.Table], str | None]
"""Puts a table of BAD_VIDEOS_SCHEMA where the user finds it, and says where; None if there is no such place."""

_NUM_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class BadVideo:
    """Why a video cannot be used."""

    status: str
    """A value of ``vidray.types.Status``."""
    message: str
    """What happened, for people."""


def bad_videos_table(table: pa.Table, bad_videos: Mapping[int, BadVideo]) -> pa.Table:
    """What ``bad_videos.parquet`` holds of one part of the split: one row per bad video, in the order of ``table``.

    Args:
        table: labelled rows (``LABELLED_SCHEMA``).
        bad_videos: by row of ``table``.
    """
    rows = sorted(bad_videos)
    bad = table.select(["uri", "label", "split"]).take(pa.array(rows, pa.int64()))
    reasons = [[bad_videos[row].status for row in rows], [bad_videos[row].message for row in rows]]
    columns = [*bad.columns, *reasons]
    return pa.table(dict(zip(BAD_VIDEOS_SCHEMA.names, columns, strict=True)), schema=BAD_VIDEOS_SCHEMA)


def check_failure_rate(
    table: pa.Table, bad_videos: Mapping[int, BadVideo], *, max_rate: float, what: str, keep: KeepBadVideos
) -> None:
    """Raises TooManyFailuresError if more than ``max_rate`` of the videos in ``table`` are bad; ``keep`` comes first.

    Args:
        what: which videos these are, in a word.
    """
    if len(bad_videos) <= max_rate * table.num_rows:
        return
    listed = bad_videos_table(table, bad_videos)
    where = keep(listed)
    counts = Counter(bad.status for bad in bad_videos.values())
    named = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    shown = listed.slice(0, _NUM_SHOWN).to_pylist()
    raise TooManyFailuresError(
        f"{len(bad_videos)} of {table.num_rows} {what} videos are bad ({named}); --max-failure-rate allows "
        f"{max_rate:g}. {f'All are listed in {where}, such as' if where else 'Such as'}:"
        + "".join(f"\n  {row['uri']}: {row['status']}: {row['error']}" for row in shown)
    )
