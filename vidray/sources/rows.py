"""The rows of a listing, collected from many threads into Arrow tables, which go to a file.

A million objects as one fsspec dict each would take gigabytes; here they take what one such table takes.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vidray.sources.task_pool import TaskPool
from vidray.storage.location import Location
from vidray.storage.redaction import is_url, public_uri
from vidray.storage.versions import Version, version_at
from vidray.types import TarMember, TimeRange, VideoRef

TAR_MEMBER = pa.struct(
    [
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("shard_bytes", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
"""`vidray.types.TarMember`."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("label", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("tar_member", TAR_MEMBER),
    ]
)
"""One row per video, or per span of one. ``path`` is null unless ``uri`` cannot say what is to be opened: local names
that are not UTF-8, and URLs with a signature or a password, which ``uri`` is without.
``size_bytes`` and ``etag`` are null if there was no such object, or it may not be read, or the source does not tell.
``start_seconds`` and ``end_seconds``: the span that counts as the video; null: from its start, to its end.
``tar_member`` is null unless the video is a part of a tar file: ``size_bytes`` is then the member's, ``etag`` and
``path`` the tar file's."""

SPAN = ("start_seconds", "end_seconds")
WHOSE = ("uri", *SPAN)
"""The columns that say which video, or which span of one, a row is of."""

Span = tuple[float | None, float | None]
"""``start_seconds`` and ``end_seconds``, in whole microseconds."""

_MAX_KINDS = 50
"""Extensions that are counted one by one: where each file has one of its own, they are of no use to anybody."""
_ROWS_PER_BATCH = 65_536
_LOOKUPS_PER_TASK = 32


class RowCollector:
    """Takes rows from many threads."""

    def __init__(self, write: Callable[[pa.Table], None]) -> None:
        """``write`` gets tables of ``MANIFEST_SCHEMA``, one after the other, in no particular order of rows."""
        self.num_rows = 0
        self.num_skipped = 0
        """Files that were seen and do not count as videos."""
        self.left: Counter[str] = Counter()
        """Those of them that the user may have meant, by extension."""
        self._lock = threading.Lock()
        self._columns: list[list[Any]] = [[] for _ in MANIFEST_SCHEMA]
        self._write = write

    def add(
        self,
        uris: Sequence[str],
        versions: Sequence[Version],
        *,
        paths: Sequence[bytes | None] | None = None,
        labels: Sequence[str | None] | None = None,
        spans: Sequence[Span] | None = None,
        tar_members: Sequence[dict[str, Any] | None] | None = None,
    ) -> None:
        """Appends rows; all sequences have one entry per row."""
        nulls = [None] * len(uris)
        addresses = list(paths or nulls)
        uris = list(uris)
        for number, uri in enumerate(uris):
            if tar_members is None and is_url(uri) and (public := public_uri(uri)) != uri:
                uris[number], addresses[number] = public, uri.encode()
        sizes = [size for size, _ in versions]
        etags = [etag for _, etag in versions]
        # The type is written out because the one that mypy infers depends on its hash seed.
        starts, ends = ([span[side] for span in spans] if spans else nulls for side in (0, 1))
        added: tuple[Sequence[Any], ...] = (
            uris,
            addresses,
            sizes,
            etags,
            labels or nulls,
            starts,
            ends,
            tar_members or nulls,
        )
        with self._lock:
            for column, values in zip(self._columns, added, strict=True):
                column.extend(values)
            self.num_rows += len(uris)
            if len(self._columns[0]) >= _ROWS_PER_BATCH:
                self._flush()

    def skip(self, kinds: Sequence[str | None]) -> None:
        """Counts files that were seen and do not count as videos; ``kinds``: `FileFilter.kind_left` of each."""
        with self._lock:
            self.num_skipped += len(kinds)
            for kind in kinds:
                if kind is not None:
                    is_new = kind not in self.left and len(self.left) >= _MAX_KINDS
                    self.left["of other kinds" if is_new else kind] += 1

    def flush(self) -> None:
        """Writes what has not been written yet."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, MANIFEST_SCHEMA, strict=True)]
        self._write(pa.table(arrays, schema=MANIFEST_SCHEMA))
        self._columns = [[] for _ in MANIFEST_SCHEMA]


def spawn_lookups(
    places: Sequence[Location],
    rows: RowCollector,
    tasks: TaskPool,
    *,
    labels: Sequence[str | None] | None = None,
    spans: Sequence[Span] | None = None,
) -> None:
    """Spawns tasks that add these objects as rows, with the size and etag that each has now."""
    for start in range(0, len(places), _LOOKUPS_PER_TASK):
        chunk = slice(start, start + _LOOKUPS_PER_TASK)
        tasks.spawn(_look_up, places[chunk], labels and labels[chunk], spans and spans[chunk], rows)


def _look_up(
    places: Sequence[Location],
    labels: Sequence[str | None] | None,
    spans: Sequence[Span] | None,
    rows: RowCollector,
) -> None:
    versions: dict[str, Version] = {}
    for place in places:  # spans of one video are looked up once
        if place.uri not in versions:
            versions[place.uri] = version_at(place) or (None, None)
    uris = [place.uri for place in places]
    rows.add(uris, [versions[uri] for uri in uris], labels=labels, spans=spans)


def video_of(row: dict[str, Any]) -> VideoRef:
    """The object of a row of a listing or a plan."""
    member = row.get("tar_member")
    values = {name: row[name] for name in ("uri", "size_bytes", "etag", "path")}
    return VideoRef(**values, tar_member=TarMember(**member) if member else None)


def time_range_of(row: dict[str, Any]) -> TimeRange:
    """The part of the file that the row is about."""
    return TimeRange(start_seconds=row.get("start_seconds") or 0.0, end_seconds=row.get("end_seconds"))


def identities(rows: pa.Table) -> pa.ChunkedArray:
    """A string for each row: the same for those of one video and span, of a table with ``uri`` and the two columns."""
    start, end = (
        pc.fill_null(pc.cast(pc.cast(pc.round(pc.multiply(rows[name], 1e6)), pa.int64()), pa.string()), "")
        for name in SPAN
    )
    return pc.binary_join_element_wise(rows["uri"], start, end, "\x1f")


def spell(path: str) -> tuple[str, bytes | None]:
    """(uri, path) of a local path as ``os`` gives it: a name that is not UTF-8 shows such bytes as ``\\xff``."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(path)
        return raw.decode("utf-8", "backslashreplace"), raw
    return path, None
