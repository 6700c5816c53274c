"""The rows of a plan: the Parquet file that is stored, held in memory as it is, compressed, and read by row group.

Ten million rows take 0.3 GB so, and 1.1 GB as a table.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidray.scoring.output import ROW, parquet_metadata, parquet_stream, with_spans
from vidray.sources.rows import TAR_MEMBER
from vidray.storage.arrow_file import arrow_file

PLAN_SCHEMA = pa.schema(
    [
        (ROW, pa.int64()),
        ("uri", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("attempts", pa.int32()),
        ("video_attempts", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("tar_member", TAR_MEMBER),
    ]
)
"""``attempts``: this one included. ``video_attempts``: of those before, the ones that speak against the video."""

_NUM_GROUPS_KEPT = 3
"""Row groups that stay decoded: parts are sealed nearly in order."""


class PlanRows:
    """Rows of ``PLAN_SCHEMA`` and kept columns, in the order of their numbers, of which some may be gone.

    May be shared by threads.
    """

    def __init__(self, data: bytes) -> None:
        """``data``: a Parquet file, also of an older version. Raises pyarrow's exceptions if it is damaged."""
        self._file = pq.ParquetFile(arrow_file(data))
        self._lock = threading.Lock()
        self._decoded: dict[int, pa.Table] = {}
        self.num_rows: int = self._file.metadata.num_rows
        self.metadata: dict[str, Any] = parquet_metadata(self._file.schema_arrow)
        self.schema: pa.Schema = _typed(self._file.schema_arrow.remove_metadata().empty_table()).schema
        """PLAN_SCHEMA, and the kept columns as they are."""
        column = self._file.schema_arrow.get_field_index(ROW)
        groups = [self._file.metadata.row_group(group) for group in range(self._file.num_row_groups)]
        statistics = [group.column(column).statistics for group in groups if group.num_rows]
        self._bounds = [(one.min, one.max) for one in statistics]
        """The first and the last number of each group."""

    @classmethod
    def of(cls, tables: Iterable[pa.Table], schema: pa.Schema) -> PlanRows:
        """Of tables in the order of their numbers."""
        return cls(parquet_stream(tables, schema, {}))

    def tables(self) -> Iterator[pa.Table]:
        """All rows, group by group."""
        return map(self._read, range(len(self._bounds)))

    def between(self, start: int, stop: int) -> pa.Table:
        """Those with numbers from ``start`` to before ``stop``."""
        found = [self.schema.empty_table()]
        for group, (first, last) in enumerate(self._bounds):
            if first < stop and last >= start:
                table = self._read(group)
                begin, end = np.searchsorted(table[ROW].to_numpy(), (start, stop))
                found.append(table.slice(begin, end - begin))
        return pa.concat_tables(found)

    def take(self, numbers: np.ndarray) -> pa.Table:
        """Those with these numbers, which are sorted."""
        found = [self.schema.empty_table()]
        for group, (first, last) in enumerate(self._bounds):
            begin, end = np.searchsorted(numbers, (first, last + 1))
            if begin < end:
                table = self._read(group)
                found.append(table.take(pa.array(np.searchsorted(table[ROW].to_numpy(), numbers[begin:end]))))
        return pa.concat_tables(found)

    def _read(self, group: int) -> pa.Table:
        with self._lock:
            if group not in self._decoded:
                if len(self._decoded) == _NUM_GROUPS_KEPT:
                    del self._decoded[next(iter(self._decoded))]
                self._decoded[group] = _typed(self._file.read_row_group(group).replace_schema_metadata(None))
            return self._decoded[group]


def kept_columns(schema: pa.Schema) -> list[str]:
    """The columns of a plan that come from manifests (``--keep-columns``)."""
    return [name for name in schema.names if name not in PLAN_SCHEMA.names]


def _typed(rows: pa.Table) -> pa.Table:
    """PLAN_SCHEMA and the kept columns, of a plan of any version."""
    rows = with_spans(rows)
    if "video_attempts" not in rows.column_names:  # an older version's: it counted every attempt against the video
        rows = rows.append_column("video_attempts", pc.subtract(rows["attempts"], 1))
    if "tar_member" not in rows.column_names:
        rows = rows.append_column("tar_member", pa.nulls(rows.num_rows, TAR_MEMBER))
    fields = [*PLAN_SCHEMA, *(rows.schema.field(name) for name in kept_columns(rows.schema))]
    return rows.select([field.name for field in fields]).cast(pa.schema(fields))
