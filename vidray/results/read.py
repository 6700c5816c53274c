"""The current rows of an output: one for each video, result key by result key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.results.merged import find_row_files
from vidray.scoring.output import PREDICTION_SCHEMA, VIDEO
from vidray.sources.rows import WHOSE
from vidray.storage.arrow_file import arrow_file
from vidray.storage.store import Store

IDENTITY = "uri, start_seconds, end_seconds, result_key"
"""The columns that say which row of all attempts another one replaces."""

VERSION = f"{IDENTITY}, etag"
"""What all rows of one version of a video have in common."""

CURRENT_SQL = f"""
SELECT * EXCLUDE (version_planned_at) FROM (
    SELECT *, max(coalesce(planned_at, scored_at)) OVER (
        PARTITION BY {VERSION}) AS version_planned_at
    FROM predictions)
QUALIFY row_number() OVER (
    PARTITION BY {IDENTITY}
    ORDER BY version_planned_at DESC, status = 'ok' DESC, attempts DESC) = 1
"""
"""What *current* means (docs/output.md), of a table ``predictions`` of all rows."""

_DECIDING = (*VIDEO, "result_key", "planned_at", "scored_at", "status", "attempts")
_NUM_THREADS = 8


def read(output: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The current row of each video (or span of one): of the version that was planned last, the ``ok`` row, or else the
    last attempt.

    With several models or views in one output there is one for each ``result_key``.

    Args:
        output: the folder that was scored into: a path, ``s3://`` …
        columns: only these; None: all, which are described in docs/output.md.

    Returns:
        Rows sorted by ``uri`` and span.

    Raises:
        RunError: there are no rows, or the store failed.
        KeyError: there is no such column.
    """
    store = Store(str(output))
    paths = _part_paths(store)
    wanted = None if columns is None else list(dict.fromkeys([*columns, *_DECIDING]))
    order = "uri, start_seconds NULLS FIRST, end_seconds, result_key"
    current = _current(_read_parts(store, paths, wanted), order=order)
    if unknown := set(columns or ()) - set(current.column_names):
        raise KeyError(f"no such column: {sorted(unknown)}; there are {PREDICTION_SCHEMA.names}, and those kept")
    return current.select(list(columns or current.column_names))


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

    def latest(self, column: str) -> Iterator[pa.Table]:
        """``uri``, span and a column, a part at a time, of the rows that have it, by the model and views that scored
        last; of those by which no row has it, nothing."""
        for key in dict.fromkeys(self.index.sort_by([("scored_at", "descending")])["result_key"].to_pylist()):
            mine = self.index.filter(pc.equal(self.index["result_key"], key))
            blocks = (block.filter(block[column].is_valid()) for block in self.blocks(mine, [*WHOSE, column]))
            filled = (block for block in blocks if block.num_rows)
            if (first := next(filled, None)) is not None:
                yield first
                yield from filled
                return

    def blocks(self, index: pa.Table, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of some of the rows, which are given as rows of ``index`` in their order: a part at a time."""
        parts, starts = np.unique(index["part"].to_numpy(), return_index=True)
        for part, places in zip(parts, np.split(index["place"].to_numpy(), starts[1:]), strict=False):
            yield read_part(self._store, self._paths[part], list(columns)).take(pa.array(places))


def shown_names(block: pa.Table) -> list[str]:
    """What each row is of: its uri, with a span as in `uri#t=1.5,3` (W3C, Media Fragments URI)."""
    whose = block.select(WHOSE).to_pylist()
    return [row["uri"] + _fragment(row["start_seconds"], row["end_seconds"]) for row in whose]


def _fragment(start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return ""
    return f"#t={start or 0:.15g}" + ("" if end is None else f",{end:.15g}")


def _part_paths(store: Store) -> list[str]:
    paths = list(find_row_files(store).sizes)
    if not paths:
        raise RunError(f"{store.uri} holds no rows of vidray score")
    return paths


def _read_parts(store: Store, paths: Sequence[str], columns: Sequence[str] | None) -> list[pa.Table]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(lambda path: read_part(store, path, columns), paths))


def _current(tables: Sequence[pa.Table], *, order: str) -> pa.Table:
    try:
        predictions = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RunError(f"runs kept a column with different types, name the columns to read: {error}") from error
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("predictions", predictions)
        current = db.sql(f"SELECT * FROM ({CURRENT_SQL}) ORDER BY {order}").to_arrow_table()
    return current.cast(pa.schema([predictions.schema.field(name) for name in current.column_names]))


def read_part(store: Store, path: str, columns: Sequence[str] | None) -> pa.Table:
    """Some columns of a part, or all; null where an older version did not write them. Kept ones only where they are."""
    data = arrow_file(store.read(path))
    names = pq.read_schema(data).names
    wanted = dict.fromkeys([*PREDICTION_SCHEMA.names, *names] if columns is None else columns)
    table = pq.read_table(data, columns=[name for name in wanted if name in names])
    ours = PREDICTION_SCHEMA.names
    fields = [
        PREDICTION_SCHEMA.field(name) if name in ours else table.schema.field(name)
        for name in wanted
        if name in ours or name in names
    ]
    for field in fields:
        if field.name not in names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select([field.name for field in fields]).cast(pa.schema(fields))
