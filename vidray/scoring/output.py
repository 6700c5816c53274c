"""The Parquet that a run writes: its schema, its parts, and the collector that seals a part when it is whole.

A part is one object, made in memory and created by one conditional write, so it appears whole or not at all, and it is
its own commit record: nothing has to be remembered elsewhere for a resumed run to know what is done.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.storage.store import Store

ROW = "row"
"""Internal column: which row of the plan a prediction belongs to."""

TOP_K_TYPE = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))

TIMELINE_TYPE = pa.list_(pa.struct([("end_seconds", pa.float64()), ("label", pa.string()), ("score", pa.float32())]))

PREDICTION_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("top_k", TOP_K_TYPE),
        ("timeline", TIMELINE_TYPE),
        ("num_views", pa.int32()),
        ("duration_seconds", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("codec", pa.string()),
        ("num_frames_expected", pa.int64()),
        ("num_frames_decoded", pa.int64()),
        ("decode_seconds", pa.float64()),
        ("model", pa.string()),
        ("fingerprint", pa.string()),
        ("view_config", pa.string()),
        ("result_key", pa.string()),
        ("run_id", pa.string()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""One row per video. Always written with this schema: a column that is all null would else change its type."""

METADATA_KEY = b"vidray"


def part_path(run_id: str, shard: int) -> str:
    """Where a shard's part lies, relative to the output."""
    return f"predictions/run={run_id}/part-{shard:05d}.parquet"


def shard_of_part(path: str) -> int | None:
    """The shard whose part this path is; None if it is no part's path."""
    match = re.fullmatch(r"(?:.*/)?part-(\d{5,})\.parquet", path)
    return int(match[1]) if match else None


def sealed_shards(store: Store, run_id: str) -> set[int]:
    """The shards of a run whose parts are there."""
    shards = (shard_of_part(path) for path in store.list(f"predictions/run={run_id}"))
    return {shard for shard in shards if shard is not None}


def parquet_bytes(table: pa.Table, metadata: dict[str, Any]) -> bytes:
    """``table`` as one Parquet file in memory, with ``metadata`` as JSON in its footer."""
    schema = table.schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    sink = io.BytesIO()
    pq.write_table(table.cast(schema), sink, compression="zstd")
    return sink.getvalue()


def parquet_metadata(schema: pa.Schema) -> dict[str, Any]:
    """What ``parquet_bytes`` was given; {} for a file of somebody else."""
    return json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """How the rows of a plan fall into shards: ``rows_per_part`` consecutive rows each."""

    num_rows: int
    rows_per_part: int

    @property
    def count(self) -> int:
        """Number of shards; the last may be short."""
        return -(-self.num_rows // self.rows_per_part)

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the first after it."""
        start = shard * self.rows_per_part
        return start, min(start + self.rows_per_part, self.num_rows)


class Collector:
    """Gathers prediction rows by shard in whatever order they come, and seals each part when its rows are all there.

    It trusts nothing: a row that comes twice counts once, and what never came is named by ``missing_rows``.
    """

    def __init__(
        self,
        *,
        store: Store,
        plan: pa.Table,
        shards: Shards,
        run_id: str,
        sealed: set[int],
        constants: dict[str, str],
        before_seal: Callable[[], None] = lambda: None,
    ) -> None:
        """``constants``: columns that say the same in every row of the run. ``before_seal`` may refuse by raising."""
        self._store = store
        self._constants = constants
        self._before_seal = before_seal
        self._plan = plan
        self._shards = shards
        self._run_id = run_id
        self._seen = np.zeros(shards.num_rows, dtype=bool)
        self._pending: dict[int, list[pa.Table]] = {}
        for shard in sealed:
            start, stop = shards.bounds(shard)
            self._seen[start:stop] = True

    @property
    def num_rows(self) -> int:
        """Rows that are there, sealed or waiting for their shard to be whole."""
        return int(self._seen.sum())

    def missing_rows(self) -> np.ndarray:
        """(N,) int64: the plan's rows that have not come yet, in order."""
        return np.flatnonzero(~self._seen)

    def add(self, table: pa.Table) -> list[pa.Table]:
        """Take rows (PREDICTION_SCHEMA and ``row``); seal what became whole.

        Returns the tables that were not seen before, one per shard touched.
        """
        fresh = self._first_occurrences(table)
        rows = fresh[ROW].to_numpy()
        self._seen[rows] = True
        taken = []
        for shard in np.unique(rows // self._shards.rows_per_part):
            mine = fresh.filter(pa.array(rows // self._shards.rows_per_part == shard))
            self._pending.setdefault(int(shard), []).append(mine)
            taken.append(mine)
            self._seal_if_whole(int(shard))
        return taken

    def _first_occurrences(self, table: pa.Table) -> pa.Table:
        rows = table[ROW].to_numpy()
        first = np.zeros(len(rows), dtype=bool)
        first[np.unique(rows, return_index=True)[1]] = True
        return table.filter(pa.array(first & ~self._seen[rows]))

    def _seal_if_whole(self, shard: int) -> None:
        start, stop = self._shards.bounds(shard)
        if not self._seen[start:stop].all():
            return
        table = pa.concat_tables(self._pending.pop(shard)).sort_by(ROW)
        if table[ROW].to_pylist() != list(range(start, stop)):
            raise RunError(
                f"shard {shard} should hold rows {start} to {stop - 1}, but does not: this is a bug of vidray"
            )
        for name, value in self._constants.items():
            table = table.append_column(name, pa.repeat(value, table.num_rows))
        self._before_seal()
        seal_part(self._store, self._run_id, shard, table.select(PREDICTION_SCHEMA.names))


def seal_part(store: Store, run_id: str, shard: int, table: pa.Table) -> None:
    """Create a shard's part, or adopt the one that is there if it holds the same videos.

    A part that is already there is either our own, whose acknowledgement was lost, or another driver's of the same
    run, which is as good. Raises RunError if it holds other videos.
    """
    path = part_path(run_id, shard)
    metadata = {"run_id": run_id, "shard": shard, "num_rows": table.num_rows}
    try:
        store.create(path, parquet_bytes(table.cast(PREDICTION_SCHEMA), metadata))
    except FileExistsError:
        there = pq.read_table(io.BytesIO(store.read(path)), columns=["uri", "etag"])
        if there.to_pylist() != table.select(["uri", "etag"]).to_pylist():
            raise RunError(
                f"{store.uri_for(path)} is there already and holds other videos than shard {shard} of run {run_id} "
                "should; it was left as it is"
            ) from None


def read_columns(store: Store, path: str, columns: list[str]) -> pa.Table:
    """Some columns of one Parquet object of the output. Columns it lacks are left out."""
    data = io.BytesIO(store.read(path))
    names = pq.read_schema(data).names
    return pq.read_table(data, columns=[column for column in columns if column in names])
