"""Runs and commands of an output as tables: what each set out to do, how it went, how it ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from vidray.scoring import verdict
from vidray.scoring.history import is_finished, read_summary, run_files
from vidray.scoring.output import TIME_TYPE
from vidray.scoring.plan import load_plan
from vidray.storage.store import Store

_COUNTS = pa.map_(pa.string(), pa.int64())

RUNS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("planned_at", TIME_TYPE),
        ("outcome", pa.string()),
        *((name, pa.int64()) for name in ("num_listed", "num_already_done", "num_planned", "num_scored", "num_failed")),
        *((name, pa.int64()) for name in ("num_deferred", "num_given_up")),
        ("failed_by_status", _COUNTS),
        ("seconds", pa.float64()),
        ("videos_per_second", pa.float64()),
        ("ended_at", TIME_TYPE),
        ("exit_code", pa.int32()),
        ("message", pa.string()),
        ("model", pa.string()),
        ("result_key", pa.string()),
        ("fingerprint", pa.string()),
        ("view_config", pa.string()),
        ("precision", pa.string()),
        ("source", pa.list_(pa.string())),
    ]
)
"""A row for each run. ``outcome``: success, too_many_failures, or unfinished; then what is only known at the end is
null. ``ended_at``, ``exit_code`` and ``message`` are those of the last command that worked on it."""

VERDICTS_SCHEMA = pa.schema(
    [
        ("time", TIME_TYPE),
        ("outcome", pa.string()),
        ("exit_code", pa.int32()),
        ("message", pa.string()),
        *((name, pa.int64()) for name in ("num_listed", "num_done", "num_scored", "num_failed")),
        *((name, pa.int64()) for name in ("num_deferred", "num_given_up")),
        ("failed_by_status", _COUNTS),
        ("runs", pa.list_(pa.string())),
        ("limit", pa.int64()),
    ]
)
"""A row for each command, also one that found nothing to do."""

_NUM_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What an output says of its nights."""

    runs: pa.Table
    """RUNS_SCHEMA, the last run first."""
    verdicts: pa.Table
    """VERDICTS_SCHEMA, the last command first."""


def read_history(store: Store) -> History:
    """Read ``_runs/`` and ``_verdicts/``.

    Raises:
        RunError: a file cannot be read, or the store failed.
    """
    files = {run: names for run, names in run_files(store).items() if "plan.parquet" in names}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        verdicts = list(pool.map(lambda path: _verdict(store, path), store.list(verdict.FOLDER)))
        runs = list(pool.map(lambda run: _run(store, run, files[run]), files))
    last = {run: one for one in sorted(verdicts, key=lambda one: one["time"]) for run in one["runs"]}
    for run in runs:
        if one := last.get(run["run_id"]):
            run |= {"ended_at": one["time"], "exit_code": one["exit_code"], "message": one["message"]}
    return History(
        runs=_table(runs, RUNS_SCHEMA, newest="planned_at"), verdicts=_table(verdicts, VERDICTS_SCHEMA, newest="time")
    )


def _run(store: Store, run: str, files: set[str]) -> dict[str, Any]:
    if "summary.json" not in files or not is_finished(files):
        plan = load_plan(store, run)
        return _times(asdict(plan.header)) | {"outcome": "unfinished", "num_planned": plan.rows.num_rows}
    summary = read_summary(store, run)
    timing = summary.get("this_process", {})
    outcome = "success" if "_SUCCESS" in files else "too_many_failures"
    return (
        _times(summary) | {"outcome": outcome} | {name: timing.get(name) for name in ("seconds", "videos_per_second")}
    )


def _times(header: dict[str, Any]) -> dict[str, Any]:
    return header | {"planned_at": header["created_at"]}


def _verdict(store: Store, path: str) -> dict[str, Any]:
    one = store.read_json(path)
    return one | {f"num_{name}": (one.get(name) or {}).get("count") for name in ("deferred", "given_up")}


def _table(rows: list[dict[str, Any]], schema: pa.Schema, *, newest: str) -> pa.Table:
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.table(columns, schema=schema).sort_by([(newest, "descending")])


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind == _COUNTS:
        values = [None if value is None else list(value.items()) for value in values]
    if kind == TIME_TYPE:
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)
