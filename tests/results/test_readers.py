"""What scoring writes, and what `vidray.read` gives, is the same table to pyarrow, pandas, Polars and DuckDB."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import vidray
from tests.results.test_current import night
from tests.results.test_session import with_column, write
from vidray.scoring.output import PREDICTION_SCHEMA, SEGMENTS_TYPE, TIMELINE_TYPE, TOP_K_TYPE

WINDOW = {"start_seconds": 0.0, "end_seconds": 2.0, "label": "läuft", "score": 0.5}
FILLED = {
    "top_k": ([[{"label": "läuft", "score": 0.75}, {"label": "x", "score": 0.25}], None], TOP_K_TYPE),
    "timeline": ([[{"end_seconds": 2.0, "label": "läuft", "score": 0.5}], []], TIMELINE_TYPE),
    "segments": ([[WINDOW | {"top_k": [{"label": "x", "score": 0.5}], "embedding": [0.5, 1.0]}], None], SEGMENTS_TYPE),
    "embedding": ([[0.5, -1.0, 0.25], None], None),
    "label": (["läuft", None], None),
    "score": ([0.75, None], None),
    "size_bytes": ([2**40, None], None),
    "duration_seconds": ([1.5, None], None),
}


@pytest.fixture
def output(tmp_path) -> str:
    """A night with every kind of column filled, a span and a kept column; and one by an older version without these."""
    table = night(2, ("/ä b.mp4", "1", "ok", 1), ("/c.mp4", None, "corrupt", 1), span=(1.0, 2.5))
    for name, (values, kind) in FILLED.items():
        table = with_column(table, name, values, kind)
    table = table.append_column("camera", pa.array(["north", None]))
    return write(tmp_path / "scores", table, night(1, ("/old.mp4", "1", "ok", 1), is_old=True))


def by_pyarrow(output: str, schema: pa.Schema) -> pa.Table:
    return ds.dataset(f"{output}/predictions", format="parquet", schema=schema).to_table()


def by_pandas(output: str, schema: pa.Schema) -> pa.Table:
    frame = pd.read_parquet(f"{output}/predictions", schema=schema, partitioning=None, dtype_backend="pyarrow")
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)


def by_polars(output: str, schema: pa.Schema) -> pa.Table:
    polars = pytest.importorskip("polars", reason="polars is not installed; pip install 'vidray[test]'")
    frames = [polars.read_parquet(path) for path in ds.dataset(f"{output}/predictions", format="parquet").files]
    return polars.concat(frames, how="diagonal_relaxed").select(schema.names).to_arrow()


def by_duckdb(output: str, schema: pa.Schema) -> pa.Table:
    files = f"{output}/predictions/*/*.parquet"
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        return db.sql(f"FROM read_parquet('{files}', union_by_name = true, hive_partitioning = false)").to_arrow_table()


READERS: list[Callable[[str, pa.Schema], pa.Table]] = [by_pyarrow, by_pandas, by_polars, by_duckdb]


def listed(table: pa.Table, schema: pa.Schema) -> list[dict]:
    return sorted(table.select(schema.names).cast(schema).to_pylist(), key=lambda row: row["uri"])


@pytest.mark.parametrize("reader", READERS)
def test_parts_hold_the_same_for_every_reader(output, reader):
    expected = vidray.read(output)
    rows = listed(reader(output, expected.schema), expected.schema)
    assert rows == expected.to_pylist()
    assert [row["uri"] for row in rows] == ["/c.mp4", "/old.mp4", "/ä b.mp4"]
    assert rows[2]["segments"][0]["embedding"] == [0.5, 1.0]
    assert (rows[2]["camera"], rows[2]["start_seconds"], rows[1]["camera"]) == ("north", 1.0, None)


def pandas(table: pa.Table) -> pa.Table:
    return pa.Table.from_pandas(table.to_pandas(), schema=table.schema, preserve_index=False)


def polars(table: pa.Table) -> pa.Table:
    module = pytest.importorskip("polars", reason="polars is not installed; pip install 'vidray[test]'")
    return module.from_arrow(table).to_arrow()


def in_duckdb(table: pa.Table) -> pa.Table:
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("rows", table)
        return db.sql("FROM rows").to_arrow_table()


@pytest.mark.parametrize("through", [pandas, polars, in_duckdb])
def test_what_python_reads_is_the_same_in_every_library(output, through):
    table = vidray.read(output)
    assert table.schema.names == [*PREDICTION_SCHEMA.names, "camera"]
    assert listed(through(table), table.schema) == table.to_pylist()
