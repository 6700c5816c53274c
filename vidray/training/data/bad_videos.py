"""Videos that cannot be used: why, the table that lists them, and when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from vidray.errors import TooManyFailuresError

BAD_VIDEOS_SCHEMA = pa.schema([(name, pa.string()) for name in ("uri", "label", "split", "status", "error")])


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


def check_failure_rate(bad_videos: Mapping[int, BadVideo], *, num_videos: int, max_rate: float) -> None:
    """Raises TooManyFailuresError if more than ``max_rate`` of the training videos are bad."""
    if len(bad_videos) <= max_rate * num_videos:
        return
    counts = Counter(bad.status for bad in bad_videos.values())
    named = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    raise TooManyFailuresError(
        f"{len(bad_videos)} of {num_videos} training videos are bad ({named}); --max-failure-rate allows {max_rate:g}"
    )
