"""The current rows of an output: one for each video, result key by result key."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import duckdb
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
    paths = [path for path in store.list("predictions") if shard_of_part(path) is not None]
    if not paths:
        raise RunError(f"{store.uri} holds no rows of vidray score")
    wanted = list(dict.fromkeys([*(columns or PREDICTION_SCHEMA.names), *_DECIDING]))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        tables = list(pool.map(lambda path: _read_part(store, path, wanted), paths))
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("predictions", pa.concat_tables(tables))
        current = db.sql(f"SELECT * FROM ({CURRENT_SQL}) ORDER BY uri, result_key").to_arrow_table()
    return current.select(list(columns or PREDICTION_SCHEMA.names)).cast(_schema_of(columns))


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
