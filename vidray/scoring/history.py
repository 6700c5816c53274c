"""What an output already holds: one key per video and result, so that a night only pays for what is new.

Every finished run leaves a compact ``keys.parquet``; the planner reads these instead of all parts. A run that did not
finish has none, so its parts are read. A key is the MD5 of (uri, etag, result key): stable across versions of every
library, and DuckDB computes it over columns.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.scoring import output
from vidray.storage.store import Store
from vidray.types import Status

KEYS_SCHEMA = pa.schema([("key", pa.binary()), ("status", pa.string()), ("attempts", pa.int32())])

MIN_RUNS_TO_MERGE = 64
"""So many key files are read one by one before they are merged."""

_KEY_SQL = "unhex(md5(concat_ws(chr(31), uri, coalesce(etag, ''), result_key)))"
_COLUMNS = ["uri", "etag", "result_key", "status", "attempts"]


def run_file(run_id: str, name: str) -> str:
    """Where a run keeps ``name`` (plan.parquet, keys.parquet, summary.json, _SUCCESS), relative to the output."""
    return f"_runs/{run_id}/{name}"


def run_files(store: Store) -> dict[str, set[str]]:
    """Which files every run of an output has: ``{run_id: {"plan.parquet", ...}}``."""
    runs: dict[str, set[str]] = {}
    for path in store.list("_runs"):
        folder, name = posixpath.split(path)
        runs.setdefault(posixpath.basename(folder), set()).add(name)
    return runs


def is_finished(files: Iterable[str]) -> bool:
    """Whether a run with these files has ended, well or badly."""
    return bool({"_SUCCESS", "_FAILED"} & set(files))


def keys_of(rows: pa.Table) -> pa.Table:
    """KEYS_SCHEMA of prediction rows (uri, etag, result_key, status, attempts)."""
    return _with_keys(rows, "status", "attempts").cast(KEYS_SCHEMA)


def _with_keys(rows: pa.Table, *columns: str) -> pa.Table:
    with duckdb.connect() as db:
        db.register("rows", rows)
        names = ", ".join([f"{_KEY_SQL} AS key", *columns])
        return db.sql(f"SELECT {names} FROM rows").to_arrow_table()


def read_run_keys(store: Store, run_id: str, *, num_threads: int = 8) -> pa.Table:
    """KEYS_SCHEMA of every row that a run's parts hold, part by part: a row has 1 kB, its key 16 bytes."""
    paths = [path for path in store.list(f"predictions/run={run_id}") if output.shard_of_part(path) is not None]
    with ThreadPoolExecutor(num_threads) as pool:
        tables = list(pool.map(lambda path: keys_of(output.read_columns(store, path, _COLUMNS)), paths))
    return pa.concat_tables([KEYS_SCHEMA.empty_table(), *tables])


def check_complete(plan: pa.Table, keys: pa.Table, *, result_key: str) -> None:
    """Raise RunError unless ``keys`` are those of the plan's rows (uri, etag), each once."""
    rows = pa.table({"uri": plan["uri"], "etag": plan["etag"], "result_key": pa.repeat(result_key, plan.num_rows)})
    want, got = (_sorted_keys(table) for table in (_with_keys(rows), keys))
    if want.equals(got):
        return
    raise RunError(
        f"the run planned {plan.num_rows} videos and its parts hold {keys.num_rows} rows, "
        f"{pc.count_distinct(got).as_py()} videos: _SUCCESS was not written. "
        "Run the same command again; if it says so again, the output was changed by hand"
    )


def _sorted_keys(keys: pa.Table) -> pa.Array:
    array = keys["key"].combine_chunks()
    return array.take(pc.array_sort_indices(array))


def read_keys(store: Store, *, num_threads: int = 16) -> pa.Table:
    """KEYS_SCHEMA of everything that the output holds, from key files and, for runs without one, from their parts."""
    merged, merged_runs = _read_merged(store)
    runs = {run: files for run, files in run_files(store).items() if run not in merged_runs}
    with_keys = [run for run, files in runs.items() if "keys.parquet" in files]
    others = [run for run, files in runs.items() if "keys.parquet" not in files]
    with ThreadPoolExecutor(num_threads) as pool:
        tables = list(
            pool.map(
                lambda run: output.read_columns(store, run_file(run, "keys.parquet"), KEYS_SCHEMA.names), with_keys
            )
        )
    tables += [read_run_keys(store, run) for run in others]
    return pa.concat_tables([merged, *(table.cast(KEYS_SCHEMA) for table in tables)])


def merge_keys(store: Store, *, min_runs: int = MIN_RUNS_TO_MERGE) -> None:
    """Once many finished runs have a key file each, put them into one, so that a year of nights stays quick to read.

    The merged files' names start with the number of runs in them: the greatest holds what all others do.
    """
    _, merged_runs = _read_merged(store)
    finished = {run for run, files in run_files(store).items() if is_finished(files) and "keys.parquet" in files}
    if len(finished - merged_runs) < min_runs:
        return
    files = [run_file(run, "keys.parquet") for run in sorted(finished)]
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(lambda file: output.read_columns(store, file, KEYS_SCHEMA.names), files))
    table = pa.concat_tables([KEYS_SCHEMA.empty_table(), *(table.cast(KEYS_SCHEMA) for table in tables)])
    data = output.parquet_bytes(table, {"runs": sorted(finished)})
    with contextlib.suppress(FileExistsError):  # an attempt that was cut off afterwards merged the same runs
        store.create(f"_keys/{len(finished):08d}.parquet", data)


def _read_merged(store: Store) -> tuple[pa.Table, set[str]]:
    """The keys of the greatest merged file, and the runs that it stands for."""
    files = store.list("_keys")
    if not files:
        return KEYS_SCHEMA.empty_table(), set()
    table = pq.read_table(io.BytesIO(store.read(files[-1])))
    runs = set(output.parquet_metadata(table.schema)["runs"])
    return table.replace_schema_metadata(None).cast(KEYS_SCHEMA), runs


def plan_new(listed: pa.Table, keys: pa.Table, *, result_key: str, retry_failed: bool, max_attempts: int) -> pa.Table:
    """The listed videos that are to be scored now, sorted by uri, with ``row`` and ``attempts`` (this one included).

    New or changed objects (another etag) and new results (another result key) have no key yet. A failure is tried again
    if it is transient and was tried fewer than ``max_attempts`` times, or always with ``retry_failed``.
    """
    transient = [status.value for status in Status if status.is_transient]
    with duckdb.connect() as db:
        db.register("listed", listed)
        db.register("keys", keys)
        table = db.sql(
            f"""
            WITH done AS (
                SELECT key, bool_or(status = 'ok') AS ok, max(attempts) AS attempts,
                       arg_max(status, attempts) AS status
                FROM keys GROUP BY key
            ), keyed AS (
                SELECT *, {_KEY_SQL} AS key FROM (SELECT *, $result_key AS result_key FROM listed)
            )
            SELECT uri, path, size_bytes, etag, (coalesce(done.attempts, 0) + 1)::INTEGER AS attempts
            FROM keyed LEFT JOIN done USING (key)
            WHERE done.key IS NULL
               OR (NOT done.ok AND ($retry_failed OR (list_contains($transient, done.status)
                                                       AND done.attempts < $max_attempts)))
            ORDER BY uri
            """,
            params={
                "result_key": result_key,
                "retry_failed": retry_failed,
                "transient": transient,
                "max_attempts": max_attempts,
            },
        ).to_arrow_table()
    return table.add_column(0, output.ROW, pa.array(np.arange(table.num_rows)))
