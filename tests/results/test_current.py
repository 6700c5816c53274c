"""The queries of docs/output.md that give one row per video do so."""

from __future__ import annotations

import datetime
import re

import duckdb
import pyarrow as pa
import pytest

from tests.scoring.test_history import rows
from tests.support.runs import ROOT
from vidray.scoring.output import TIME_TYPE, parquet_bytes, part_path
from vidray.storage.store import Store

QUERIES = re.findall(r"```sql\n-- current\n(.*?)```", (ROOT / "docs" / "output.md").read_text(), re.DOTALL)


def night(day: int, *values, key: str = "k", is_old: bool = False, span=(None, None)) -> pa.Table:
    """Rows of a run that was planned on this day; ``is_old``: written before there was such a column."""
    table = rows(*values, key=key)
    time = pa.repeat(pa.scalar(datetime.datetime(2026, 11, day, tzinfo=datetime.UTC), TIME_TYPE), table.num_rows)
    for name in ("planned_at", "scored_at"):
        table = table.set_column(table.schema.get_field_index(name), name, time)
    for name, seconds in zip(("start_seconds", "end_seconds"), span, strict=True):
        column = pa.repeat(pa.scalar(seconds, pa.float64()), table.num_rows)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    newer = ["planned_at", "video_attempts", "precision", "start_seconds", "end_seconds"]
    return table.drop_columns(newer) if is_old else table


NIGHTS = [
    night(1, ("a", "1", "decode_timeout", 1), ("b", "1", "corrupt", 1), ("c", "1", "ok", 1), is_old=True),
    night(2, ("a", "1", "ok", 2), ("b", "1", "corrupt", 2), ("c", "2", "access_denied", 1)),
    night(3, ("a", "1", "decode_timeout", 3), ("c", "2", "fetch_failed", 2), ("d", None, "ok", 1)),
    night(3, ("a", "1", "ok", 1), ("c", "2", "ok", 1), key="another model"),
    night(4, ("e", "1", "ok", 1)),
    night(5, ("e", "2", "ok", 1)),
    night(6, ("e", "2", "corrupt", 1), ("d", None, "corrupt", 1), span=(1.0, 2.0)),
    night(7, ("e", "2", "ok", 2), span=(1.0, 2.0)),
]
EXPECTED = [
    ("a", "another model", "1", "ok", 1),
    ("a", "k", "1", "ok", 2),  # a good row stays, whatever came after it
    ("b", "k", "1", "corrupt", 2),  # the last attempt
    ("c", "another model", "2", "ok", 1),
    ("c", "k", "2", "fetch_failed", 2),  # of the version that is there now, although the one before was scored
    ("d", "k", None, "corrupt", 1),  # of a span, which has rows of its own
    ("d", "k", None, "ok", 1),
    ("e", "k", "2", "ok", 1),
    ("e", "k", "2", "ok", 2),
]


@pytest.mark.parametrize("query", QUERIES, ids=["DuckDB", "Athena and Spark"])
def test_each_video_has_one_current_row_of_each_result_key(tmp_path, query):
    store = Store(str(tmp_path / "scores"))
    for number, table in enumerate(NIGHTS):
        store.create(part_path(f"r{number}", 0), parquet_bytes(table, {}))
    files = f"{tmp_path}/scores/predictions/*/*.parquet"
    query = query.replace("scores/predictions/*/*.parquet", files)
    query = query.replace("FROM predictions", f"FROM read_parquet('{files}', union_by_name = true)")
    found = duckdb.sql(f"SELECT uri, result_key, etag, status, attempts FROM ({query}) ORDER BY ALL").fetchall()
    assert found == EXPECTED


def test_there_are_two_queries():
    assert len(QUERIES) == 2


def test_the_view_counts_each_video_of_the_model_that_scored_last_once(tmp_path):
    store = Store(str(tmp_path / "scores"))
    for number, table in enumerate(NIGHTS):
        store.create(part_path(f"r{number}", 0), parquet_bytes(table, {}))
    text = (ROOT / "docs/output.md").read_text()
    (statements,) = re.findall(r"```sql\n(CREATE VIEW current .*?)```", text, re.DOTALL)
    with duckdb.connect() as db:
        db.execute(statements.replace("s3://bucket/scores", f"{tmp_path}/scores")).fetchall()
        rows_of_k = [(uri, etag, status, attempts) for uri, key, etag, status, attempts in EXPECTED if key == "k"]
        assert db.sql("SELECT uri, etag, status, attempts FROM current ORDER BY ALL").fetchall() == rows_of_k
