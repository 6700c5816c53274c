"""The Parquet that a run writes: the schema of its rows, where its parts lie, and how they are read.

A part is one object, made in memory and created by one conditional write, so it appears whole or not at all, and it is
its own commit record: nothing has to be remembered elsewhere for a resumed run to know what is done.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vidray.sources.rows import SPAN
from vidray.storage.arrow_file import arrow_file
from vidray.storage.store import Store

ROW = "row"
"""Internal column: which row of the plan a prediction belongs to."""

TIME_TYPE = pa.timestamp("us", tz="UTC")

TOP_K_TYPE = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))

TIMELINE_TYPE = pa.list_(pa.struct([("end_seconds", pa.float64()), ("label", pa.string()), ("score", pa.float32())]))

EMBEDDING_TYPE = pa.list_(pa.float32())

SEGMENTS_TYPE = pa.list_(
    pa.struct(
        [
            ("start_seconds", pa.float64()),
            ("end_seconds", pa.float64()),
            ("label", pa.string()),
            ("score", pa.float32()),
            ("top_k", TOP_K_TYPE),
            ("embedding", EMBEDDING_TYPE),
        ]
    )
)

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
        ("scored_at", TIME_TYPE),
        ("video_attempts", pa.int32()),
        ("planned_at", TIME_TYPE),
        ("precision", pa.string()),
        ("sample_aspect_ratio", pa.float64()),
        ("num_time_jumps", pa.int64()),
        ("decoder_version", pa.int32()),
        ("segments", SEGMENTS_TYPE),
        ("embedding", EMBEDDING_TYPE),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("bytes_fetched", pa.int64()),
    ]
)
"""One row per video (or span of one) and attempt. Always written with this schema: a column that is all null would else
change its type. New columns come at the end; parts of older versions lack them."""

VIDEO = ["uri", "etag", *SPAN]
"""What a row is of. ``start_seconds`` and ``end_seconds`` are null where it is of a whole video."""

SCHEMA_VERSION = 6
"""Stands in the footer of every part. 1: without ``video_attempts``, ``planned_at`` and ``precision``. 2: without
``sample_aspect_ratio``, ``num_time_jumps`` and ``decoder_version``. 3: without ``segments`` and ``embedding``. 4:
without ``start_seconds`` and ``end_seconds``. 5: without ``bytes_fetched``."""

METADATA_KEY = b"vidray"

ROWS_PER_GROUP = 65_536
"""Of plans and keys, which are read group by group."""


def part_path(run_id: str, shard: int) -> str:
    """Where a shard's part lies, relative to the output."""
    return f"predictions/run={run_id}/part-{shard:05d}.parquet"


def shard_of_part(path: str) -> int | None:
    """The shard whose part this path is; None if it is no part's path."""
    match = re.fullmatch(r"(?:.*/)?part-(\d{5,})\.parquet", path)
    return int(match[1]) if match else None


def run_of_part(path: str) -> str:
    """The run whose part this path is."""
    return posixpath.basename(posixpath.dirname(path)).removeprefix("run=")


def part_paths(store: Store, run_id: str) -> list[str]:
    """The parts of a run that are there."""
    return [path for path in store.list(f"predictions/run={run_id}") if shard_of_part(path) is not None]


def sealed_shards(store: Store, run_id: str) -> set[int]:
    """The shards of a run whose parts are there."""
    return {shard for path in part_paths(store, run_id) if (shard := shard_of_part(path)) is not None}


def count_parts(store: Store) -> Counter[str]:
    """How many parts of each run are there."""
    return Counter(run_of_part(path) for path in store.list("predictions") if shard_of_part(path) is not None)


def parquet_bytes(table: pa.Table, metadata: dict[str, Any]) -> bytes:
    """``table`` as one Parquet file in memory, with ``metadata`` as JSON in its footer."""
    schema = table.schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    sink = io.BytesIO()
    pq.write_table(table.cast(schema), sink, compression="zstd")
    return sink.getvalue()


def parquet_stream(tables: Iterable[pa.Table], schema: pa.Schema, metadata: dict[str, Any]) -> bytes:
    """The same of tables that are made one after the other, in groups of `ROWS_PER_GROUP` rows or up to twice as many.

    Only the file is held in memory: a row of a plan or a key takes some 30 bytes in it.
    """
    sink = pa.BufferOutputStream()
    schema = schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for table in _regrouped(tables):
            writer.write_table(table, 2 * ROWS_PER_GROUP)
    return sink.getvalue().to_pybytes()


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


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


def with_spans(rows: pa.Table) -> pa.Table:
    """Rows of any version, with ``start_seconds`` and ``end_seconds``."""
    for name in SPAN:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.float64()))
    return rows


def read_columns(store: Store, path: str, columns: list[str]) -> pa.Table:
    """Some columns of one Parquet object of the output. Columns it lacks are left out."""
    data = arrow_file(store.read(path))
    names = pq.read_schema(data).names
    return pq.read_table(data, columns=[column for column in columns if column in names])
