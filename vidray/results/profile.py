"""What a run found, in a few numbers: ``_runs/<run>/profile.parquet``, by which months of nights can be plotted.

A profile says nothing of single videos. It is made once, of the run and the run before it, and then stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.results.changes import COMPARED, Change, Flips, value_name
from vidray.results.run_rows import Run
from vidray.scoring.history import run_file, run_files
from vidray.scoring.output import TIME_TYPE, parquet_bytes
from vidray.storage.arrow_file import arrow_file
from vidray.storage.failures import describe
from vidray.storage.store import Store

FILE = "profile.parquet"

SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("planned_at", TIME_TYPE),
        ("model", pa.string()),
        ("result_key", pa.string()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("value", pa.string()),
        ("level", pa.float64()),
        ("number", pa.float64()),
        ("num_videos", pa.int64()),
        ("by_chance", pa.float64()),
        ("against", pa.string()),
    ]
)
"""A row for each number, which is called ``number``; docs/output.md says what the others mean for each ``kind``."""

LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_QUANTILES = {"score": "score", "duration": "duration_seconds", "size": "size_bytes"}
_SCHEMA_VERSION = 1
_NUM_THREADS = 16


def make_profile(
    db: duckdb.DuckDBPyConnection, run: Run, other: Run | None, found: Iterable[Change], flips: Flips | None
) -> pa.Table:
    """SCHEMA, sorted: of the table ``after`` shares and quantiles, and how far these are from the run before it.

    Args:
        other: the run before it; None: there is none.
        found: the changes since then, if it has the same result key.
        flips: if it has another.
    """
    rows = [row for name in COMPARED for row in _shares(db, name)]
    rows += [row for name, column in _QUANTILES.items() for row in _quantiles(db, name, column)]
    against = {"against": other.run_id if other else None}
    rows += [
        {"kind": "distance", "name": change.name, "number": change.distance, "num_videos": change.num_after}
        | {"by_chance": change.by_chance, **against}
        for change in found
        if change.num_before and change.num_after
    ]
    if flips is not None and flips.num_common:
        rows.append(
            {"kind": "flips", "name": "label", "number": flips.share, "num_videos": flips.num_common, **against}
        )
    whose = {"run_id": run.run_id, "model": run.summary["model"], "result_key": run.result_key}
    columns = {name: [(whose | row).get(name) for row in rows] for name in SCHEMA.names if name != "planned_at"}
    columns["planned_at"] = pa.array([run.summary["created_at"]] * len(rows), pa.string()).cast(TIME_TYPE)
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _shares(db: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    value, condition = COMPARED[name]
    found = db.execute(
        f"""SELECT CAST({value} AS VARCHAR) AS value, count(*) AS num FROM after WHERE {condition}
        GROUP BY 1 ORDER BY num DESC, value"""
    ).fetchall()
    total = sum(num for _, num in found)
    rows = [{"kind": "share", "name": name, "number": num / total, "num_videos": num} for _, num in found]
    for row, (text, _) in zip(rows, found, strict=True):
        row |= {"value": value_name(name, text), "level": _lower(name, text)}
    return rows


def _lower(name: str, value: str | None) -> float | None:
    """The lower end of the range that a value stands for, if it does."""
    if value is None or name not in _QUANTILES:
        return None
    return float(value) / 10 if name == "score" else 2.0 ** float(value)


def _quantiles(db: duckdb.DuckDBPyConnection, name: str, column: str) -> list[dict[str, Any]]:
    _, condition = COMPARED[name]
    ((values, num),) = db.execute(
        f"SELECT quantile_disc({column}, {list(LEVELS)}), count({column}) FROM after WHERE {condition}"
    ).fetchall()
    return [
        {"kind": "quantile", "name": name, "level": level, "number": float(value), "num_videos": num}
        for level, value in zip(LEVELS, values or (), strict=False)
    ]


def keep_profile(store: Store, run: Run, profile: pa.Table) -> bool:
    """Leave a profile beside the summary of its run. Returns False if there is one already, which stays.

    Raises:
        RunError: the store failed.
    """
    with contextlib.suppress(FileExistsError):
        store.create(run_file(run.run_id, FILE), parquet_bytes(profile, {"profile_version": _SCHEMA_VERSION}))
        return True
    return False


def read_profiles(store: Store) -> pa.Table:
    """SCHEMA of all profiles of an output, by run.

    Raises:
        RunError: one is damaged, or the store failed.
    """
    paths = [run_file(run, FILE) for run, files in sorted(run_files(store).items()) if FILE in files]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return pa.concat_tables([SCHEMA.empty_table(), *pool.map(lambda path: _read(store, path), paths)])


def _read(store: Store, path: str) -> pa.Table:
    try:
        return pq.read_table(arrow_file(store.read(path)), columns=SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise RunError(f"{store.uri_for(path)} cannot be read: {describe(error)}") from error
