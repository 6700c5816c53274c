"""The rows of some runs as DuckDB tables in a temporary file: few columns, read part by part, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from vidray.errors import RunError, UsageError
from vidray.results.read import read_part
from vidray.scoring.history import read_summary, run_files
from vidray.scoring.output import part_paths
from vidray.storage.store import Store

COLUMNS = {
    "uri": "VARCHAR",
    "etag": "VARCHAR",
    "status": "VARCHAR",
    "error": "VARCHAR",
    "label": "VARCHAR",
    "score": "FLOAT",
    "codec": "VARCHAR",
    "duration_seconds": "DOUBLE",
    "size_bytes": "BIGINT",
    "scored_at": "TIMESTAMPTZ",
    "start_seconds": "DOUBLE",
    "end_seconds": "DOUBLE",
}
"""Of the tables: these columns of the predictions, and ``part`` and ``place``, where the row lies."""
_MEMORY = "256MB"
_NUM_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run that has ended."""

    run_id: str
    summary: dict[str, Any]
    """Of summary.json."""

    @property
    def result_key(self) -> str:
        """Rows of runs with the same are comparable."""
        return str(self.summary["result_key"])

    @property
    def sources(self) -> frozenset[str]:
        """Where its videos were listed."""
        return frozenset(self.summary["source"])


def ended_runs(store: Store) -> list[Run]:
    """The runs of an output that left a summary, the oldest first.

    Raises:
        RunError: there is none, or a summary is damaged, or the store failed.
    """
    names = [run for run, files in run_files(store).items() if "summary.json" in files]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        summaries = pool.map(lambda run: read_summary(store, run), names)
        runs = [Run(run_id=run, summary=summary) for run, summary in zip(names, summaries, strict=True)]
    if not runs:
        raise RunError(f"{store.uri} holds no run of vidray score that has ended")
    return sorted(runs, key=lambda run: (run.summary["created_at"], run.run_id))


def choose(runs: Sequence[Run], run_id: str | None, *, flag: str) -> Run:
    """The run of that id; of None the last.

    Raises:
        UsageError: there is no such run.
    """
    found = [run for run in runs if run_id in (None, run.run_id)]
    if not found:
        allowed = ", ".join(run.run_id for run in runs[-5:])
        raise UsageError(f"{flag}: got {run_id!r}, allowed is a run that has ended, of the last: {allowed}")
    return found[-1]


def before(runs: Sequence[Run], run: Run) -> Run | None:
    """What to compare a run with: of the runs before it one of the same result key if there is one, of these one that
    went well, of these one of the same sources, of these the last. None for the first run.

    Args:
        runs: the oldest first.
    """

    def fitness(number: int) -> tuple[bool, bool, bool, int]:
        one = runs[number]
        is_good = one.summary["outcome"] == "success"
        return one.result_key == run.result_key, is_good, one.sources == run.sources, number

    best = max(range(runs.index(run)), key=fitness, default=None)
    return None if best is None else runs[best]


def compared(runs: Sequence[Run], other: Run | None, run: Run) -> dict[str, list[str]]:
    """For `database`: the rows of a run as ``after``, and as ``before`` those of the other. With another result key
    these are of all runs of that key until then, each of which scored what was new."""
    ids = [] if other is None else [other.run_id]
    if other is not None and other.result_key != run.result_key:
        until = max(runs.index(run), runs.index(other))
        ids = [one.run_id for one in runs[: until + 1] if one.result_key == other.result_key]
    return {"before": ids, "after": [run.run_id]}


@contextmanager
def database(store: Store, tables: Mapping[str, Sequence[str]]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with a table of the rows of some runs for each name in ``tables``."""
    with (
        tempfile.TemporaryDirectory(prefix="vidray-rows-") as folder,
        duckdb.connect(f"{folder}/rows.duckdb") as db,
    ):
        db.execute(f"SET memory_limit = '{_MEMORY}'; SET temp_directory = '{folder}'; SET TimeZone = 'UTC'")
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        for name, run_ids in tables.items():
            db.execute(f"CREATE TABLE {name} ({columns}, part VARCHAR, place BIGINT)")
            for path in (path for run_id in run_ids for path in part_paths(store, run_id)):
                _insert(db, name, read_part(store, path, list(COLUMNS)), path)
        yield db


def _insert(db: duckdb.DuckDBPyConnection, name: str, table: pa.Table, path: str) -> None:
    table = table.append_column("part", pa.array([path] * table.num_rows, pa.string()))
    db.register("incoming", table.append_column("place", pa.array(np.arange(table.num_rows))))
    db.execute(f"INSERT INTO {name} SELECT * FROM incoming")
    db.unregister("incoming")
