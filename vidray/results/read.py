"""The current rows of an output: one for each video, result key by result key."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.scoring.output import PREDICTION_SCHEMA, shard_of_part
from vidray.storage.store import Store

CURRENT_SQL = """
SELECT * EXCLUDE (version_planned_at) FROM (
    SELECT *, max(coalesce(planned_at, scored_at)) OVER (PARTITION BY uri, result_key, etag) AS version_planned_at
    FROM predictions)
QUALIFY row_number() OVER (
    PARTITION BY uri, result_key ORDER BY version_planned_at DESC, status = 'ok' DESC, attempts DESC) = 1
"""
"""What *current* means (docs/output.md), of a table ``predictions`` of all rows."""

_DECIDING = ("uri", "result_key", "etag", "planned_at", "scored_at", "status", "attempts")
_NUM_THREADS = 8


def read(output: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The current row of each video: of the version that was planned last, the ``ok`` row, or else the last attempt.

    With several models or views in one output there is one for each ``result_key``.

    Args:
        output: the folder that was scored into: a path, ``s3://`` …
        columns: only these; None: all, which are described in docs/output.md.

    Returns:
        Rows sorted by ``uri``.

    Raises:
        RunError: there are no rows, or the store failed.
        KeyError: there is no such column.
    """
    if unknown := set(columns or ()) - set(PREDICTION_SCHEMA.names):
        raise KeyError(f"no such column: {sorted(unknown)}; there are {PREDICTION_SCHEMA.names}")
    store = Store(str(output))
    wanted = list(dict.fromkeys([*(columns or PREDICTION_SCHEMA.names), *_DECIDING]))
    current = _current(_read_parts(store, _part_paths(store), wanted), order="uri, result_key")
    return current.select(list(columns or PREDICTION_SCHEMA.names)).cast(_schema_of(columns))


class CurrentRows:
    """The current rows of an output, of which only what decides that is held; the rest is read part by part.

    Raises:
        RunError: there are no rows, or the store failed.
    """

    def __init__(self, output: str) -> None:
        self._store = Store(str(output))
        self._paths = _part_paths(self._store)
        tables = _read_parts(self._store, self._paths, _DECIDING)
        places = [
            table.append_column("part", pa.array(np.full(table.num_rows, number))).append_column(
                "place", pa.array(np.arange(table.num_rows))
            )
            for number, table in enumerate(tables)
        ]
        self.index = _current(places, order="part, place")
        """Of each current row ``uri``, ``result_key``, ``status``, ``scored_at`` and where it lies."""

    @property
    def uri(self) -> str:
        """Of the output."""
        return self._store.uri

    def blocks(self, index: pa.Table, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of some of the rows, which are given as rows of ``index`` in their order: a part at a time."""
        parts, starts = np.unique(index["part"].to_numpy(), return_index=True)
        for part, places in zip(parts, np.split(index["place"].to_numpy(), starts[1:]), strict=False):
            yield _read_part(self._store, self._paths[part], list(columns)).take(pa.array(places))


def _part_paths(store: Store) -> list[str]:
    paths = [path for path in store.list("predictions") if shard_of_part(path) is not None]
    if not paths:
        raise RunError(f"{store.uri} holds no rows of vidray score")
    return paths


def _read_parts(store: Store, paths: Sequence[str], columns: Sequence[str]) -> list[pa.Table]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(lambda path: _read_part(store, path, list(columns)), paths))


def _current(tables: Sequence[pa.Table], *, order: str) -> pa.Table:
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("predictions", pa.concat_tables(tables))
        return db.sql(f"SELECT * FROM ({CURRENT_SQL}) ORDER BY {order}").to_arrow_table()


def _read_part(store: Store, path: str, columns: list[str]) -> pa.Table:
    """Some columns of a part; null where an older version did not write them."""
    data = io.BytesIO(store.read(path))
    names = pq.read_schema(data).names
    table = pq.read_table(data, columns=[name for name in columns if name in names])
    schema = pa.schema([PREDICTION_SCHEMA.field(name) for name in columns])
    missing = {name: pa.nulls(table.num_rows, schema.field(name).type) for name in columns if name not in names}
    for name, values in missing.items():
        table = table.append_column(name, values)
    return table.select(columns).cast(schema).replace_schema_metadata(None)


def _schema_of(columns: Sequence[str] | None) -> pa.Schema:
    return pa.schema([PREDICTION_SCHEMA.field(name) for name in columns or PREDICTION_SCHEMA.names])
