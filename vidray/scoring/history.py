"""What an output already holds: one key per video and result, so that a night only pays for what is new.

Every finished run leaves a compact ``keys.parquet``; the planner reads these instead of all parts. A run that did not
finish has none, so its parts are read. A key is the MD5 of (uri, etag, result key, span): stable across versions of
every library, and DuckDB computes it over columns.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.scoring import output
from vidray.storage.arrow_file import arrow_file
from vidray.storage.store import Store
from vidray.types import Status

KEYS_SCHEMA = pa.schema(
    [
        ("key", pa.binary()),
        ("status", pa.string()),
        ("attempts", pa.int32()),
        ("video_attempts", pa.int32()),
        ("last_tried_at", output.TIME_TYPE),
    ]
)
"""One row per attempt. ``attempts`` numbers the rows of a key; ``video_attempts`` counts those of them that speak
against the video."""

KEYS_FOLDER = "_keys"
"""Where keys of many runs lie in one file."""

MIN_RUNS_TO_MERGE = 64
"""So many key files are read one by one before they are merged."""

KEY_SQL = """unhex(md5(concat_ws(chr(31), uri, coalesce(etag, ''), result_key,
    CASE WHEN start_seconds IS NOT NULL OR end_seconds IS NOT NULL
    THEN concat_ws('-', coalesce(round(start_seconds * 1e6)::BIGINT, 0), round(end_seconds * 1e6)::BIGINT) END)))"""
"""A span is part of the key only where there is one."""
_NOT_YET_IN_0_1: dict[str, Any] = {"num_deferred": 0, "num_given_up": 0, "limit": None, "untried": {}, "sandbox": []}
_COLUMNS = [*output.VIDEO, "result_key", "status", "attempts", "video_attempts", "scored_at"]


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


def read_summary(store: Store, run_id: str) -> dict[str, Any]:
    """A run's ``summary.json``, with what older versions did not write there; raises as `Store.read_json`."""
    return _NOT_YET_IN_0_1 | store.read_json(run_file(run_id, "summary.json"))


def is_finished(files: Iterable[str]) -> bool:
    """Whether a run with these files has ended, well or badly."""
    return bool({"_SUCCESS", "_FAILED"} & set(files))


def keys_of(rows: pa.Table) -> pa.Table:
    """KEYS_SCHEMA of prediction rows, also of parts that an older version wrote."""
    newer = {"video_attempts": "video_attempts", "scored_at": "scored_at AS last_tried_at"}
    columns = [sql for name, sql in newer.items() if name in rows.column_names]
    return _completed(_with_keys(rows, "status", "attempts", *columns))


def _completed(keys: pa.Table) -> pa.Table:
    """KEYS_SCHEMA of keys that may be of an older version: it counted every attempt against the video, so only the
    last status can tell whether it was the store's failure."""
    if "video_attempts" not in keys.column_names:
        stores = pa.array([status.value for status in Status if status.is_store_failure])
        keys = keys.append_column("video_attempts", pc.if_else(pc.is_in(keys["status"], stores), 0, keys["attempts"]))
    if "last_tried_at" not in keys.column_names:
        keys = keys.append_column("last_tried_at", pa.nulls(keys.num_rows, output.TIME_TYPE))
    return keys.select(KEYS_SCHEMA.names).cast(KEYS_SCHEMA)


def _with_keys(rows: pa.Table, *columns: str) -> pa.Table:
    with duckdb.connect() as db:
        db.register("rows", output.with_spans(rows))
        names = ", ".join([f"{KEY_SQL} AS key", *columns])
        return db.sql(f"SELECT {names} FROM rows").to_arrow_table()


def read_run_keys(store: Store, run_id: str, *, num_threads: int = 8) -> pa.Table:
    """KEYS_SCHEMA of every row that a run's parts hold, part by part: a row has 1 kB, its key 16 bytes."""
    paths = output.part_paths(store, run_id)
    with ThreadPoolExecutor(num_threads) as pool:
        tables = list(pool.map(lambda path: keys_of(output.read_columns(store, path, _COLUMNS)), paths))
    return pa.concat_tables([KEYS_SCHEMA.empty_table(), *tables])


def check_complete(plan: pa.Table, keys: pa.Table, *, result_key: str) -> None:
    """Raise RunError unless ``keys`` are those of the plan's rows (``output.VIDEO``), each once."""
    want, got = (_sorted(column) for column in (keys_of_videos(plan, result_key=result_key), keys["key"]))
    if want.equals(got):
        return
    raise RunError(
        f"the run planned {plan.num_rows} videos and its parts hold {keys.num_rows} rows, "
        f"{pc.count_distinct(got).as_py()} videos: _SUCCESS was not written. "
        "Run the same command again; if it says so again, the output was changed by hand"
    )


def keys_of_videos(videos: pa.Table, *, result_key: str) -> pa.ChunkedArray:
    """The key of each row of a plan (``output.VIDEO``), in any order."""
    rows = videos.select(output.VIDEO).append_column("result_key", pa.repeat(result_key, videos.num_rows))
    return _with_keys(rows)["key"]


def _sorted(keys: pa.ChunkedArray) -> pa.Array:
    array = keys.combine_chunks()
    return array.take(pc.array_sort_indices(array))


def read_keys(store: Store) -> pa.Table:
    """KEYS_SCHEMA of everything that the output holds.

    From key files; for runs without one, and for those that lack a part by now, from the parts that are there.
    """
    parts, runs = output.count_parts(store), run_files(store)
    merged = _read_merged(store)
    if any(parts[run] < (num_parts or 0) for run, num_parts in merged.num_parts.items()):
        merged = _Merged()  # it cannot tell the rows of the run that lacks a part from the others
    files = _read_key_files(store, [run for run in runs if run not in merged.num_parts and "keys.parquet" in runs[run]])
    whole = [keys for run, (keys, num_parts) in files.items() if parts[run] >= (num_parts or 0)]
    others = [run for run in runs if run not in merged.num_parts and run not in files]
    damaged = [run for run, (_, num_parts) in files.items() if parts[run] < (num_parts or 0)]
    return pa.concat_tables([merged.keys, *whole, *(read_run_keys(store, run) for run in [*others, *damaged])])


def merge_keys(store: Store, *, min_runs: int = MIN_RUNS_TO_MERGE) -> None:
    """Once many finished runs have a key file each, put them into one, so that a year of nights stays quick to read.

    The merged files' names start with the number of runs in them: the greatest holds what all others do.
    """
    merged_runs = _read_merged(store).num_parts
    finished = {run for run, files in run_files(store).items() if is_finished(files) and "keys.parquet" in files}
    if len(finished - set(merged_runs)) < min_runs:
        return
    files = _read_key_files(store, sorted(finished))
    table = pa.concat_tables([KEYS_SCHEMA.empty_table(), *(keys for keys, _ in files.values())])
    data = output.parquet_bytes(table, {"runs": {run: num_parts for run, (_, num_parts) in files.items()}})
    with contextlib.suppress(FileExistsError):  # an attempt that was cut off afterwards merged the same runs
        store.create(f"{KEYS_FOLDER}/{len(finished):08d}.parquet", data)


def _read_key_files(store: Store, runs: list[str]) -> dict[str, tuple[pa.Table, int | None]]:
    """For each run its keys, and how many parts it had; None in a file of an older version."""

    def read(run: str) -> tuple[pa.Table, int | None]:
        table = pq.read_table(arrow_file(store.read(run_file(run, "keys.parquet"))))
        num_parts = output.parquet_metadata(table.schema).get("num_parts")
        return _completed(table.replace_schema_metadata(None)), num_parts

    with ThreadPoolExecutor(16) as pool:
        return dict(zip(runs, pool.map(read, runs), strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Merged:
    """The greatest merged key file."""

    keys: pa.Table = field(default_factory=KEYS_SCHEMA.empty_table)
    num_parts: dict[str, int | None] = field(default_factory=dict)
    """The runs that it stands for, and how many parts each had; None: it does not tell."""


def _read_merged(store: Store) -> _Merged:
    files = store.list(KEYS_FOLDER)
    if not files:
        return _Merged()
    table = pq.read_table(arrow_file(store.read(files[-1])))
    runs = output.parquet_metadata(table.schema)["runs"]
    num_parts = runs if isinstance(runs, dict) else dict.fromkeys(runs)  # a list in older versions
    return _Merged(keys=_completed(table.replace_schema_metadata(None)), num_parts=num_parts)
