"""What an output already holds: one key per video and result, so that a night only pays for what is new.

Every finished run leaves a compact ``keys.parquet``; the planner reads these instead of all parts. A run that did not
finish has none, so its parts are read. A key is the MD5 of (uri, etag, result key, span): stable across versions of
every library, and DuckDB computes it over columns.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.scoring import output
from vidray.scoring.output import Shards
from vidray.scoring.plan_rows import PlanRows
from vidray.storage.arrow_file import arrow_file
from vidray.storage.store import Store
from vidray.types import Status

A = TypeVar("A")
B = TypeVar("B")

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
_NUM_THREADS = 8
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


def read_run_keys(store: Store, run_id: str) -> Iterator[tuple[int, pa.Table]]:
    """Of every part of a run that is there: its shard, and KEYS_SCHEMA of its rows. A row has 1 kB, a key 16 bytes."""
    paths = output.part_paths(store, run_id)
    return zip(
        [shard for path in paths if (shard := output.shard_of_part(path)) is not None],
        _in_turn(lambda path: keys_of(output.read_columns(store, path, _COLUMNS)), paths),
        strict=True,
    )


def _in_turn(call: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """What a call gives for each item: on some threads, and no more of it in memory than these hold."""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(items), _NUM_THREADS):
            yield from pool.map(call, items[start : start + _NUM_THREADS])


def checked_keys(store: Store, run_id: str, plan: PlanRows, shards: Shards, *, result_key: str) -> Iterator[pa.Table]:
    """The keys of a run, part by part.

    Raises:
        RunError: at the end, unless each part held the videos that the plan has for it, each once, and no part lacked.
    """
    num_rows, wrong = 0, set(range(shards.count))
    for shard, keys in read_run_keys(store, run_id):
        planned = keys_of_videos(plan.between(*shards.bounds(shard)), result_key=result_key)
        if _sorted(planned).equals(_sorted(keys["key"])):
            wrong.discard(shard)
        num_rows += keys.num_rows
        yield keys
    if wrong or num_rows != plan.num_rows:
        raise RunError(
            f"the run planned {plan.num_rows} videos and its parts hold {num_rows} rows; {len(wrong)} parts lack or "
            "hold other videos than planned: _SUCCESS was not written. "
            "Run the same command again; if it says so again, the output was changed by hand"
        )


def keys_of_videos(videos: pa.Table, *, result_key: str) -> pa.ChunkedArray:
    """The key of each row of a plan (``output.VIDEO``), in any order."""
    rows = videos.select(output.VIDEO).append_column("result_key", pa.repeat(result_key, videos.num_rows))
    return _with_keys(rows)["key"]


def _sorted(keys: pa.ChunkedArray) -> pa.Array:
    array = keys.combine_chunks()
    return array.take(pc.array_sort_indices(array))


def read_keys(store: Store) -> Iterator[pa.Table]:
    """KEYS_SCHEMA of everything that the output holds, in tables of bounded size.

    From key files; for runs without one, and for those that lack a part by now, from the parts that are there.
    """
    parts, runs = output.count_parts(store), run_files(store)
    merged = _read_merged(store)
    if any(parts[run] < (num_parts or 0) for run, num_parts in merged.num_parts.items()):
        merged = _Merged()  # it cannot tell the rows of the run that lacks a part from the others
    yield from merged.keys()
    unread = set(runs) - set(merged.num_parts)
    for run, file in _read_key_files(store, [run for run in runs if run in unread and "keys.parquet" in runs[run]]):
        if parts[run] >= (_num_parts(file) or 0):
            yield from _keys_in(file)
            unread.remove(run)
    for run in sorted(unread):
        yield from (keys for _, keys in read_run_keys(store, run))


def merge_keys(store: Store, *, min_runs: int = MIN_RUNS_TO_MERGE) -> None:
    """Once many finished runs have a key file each, put them into one, so that a year of nights stays quick to read.

    The merged files' names start with the number of runs in them: the greatest holds what all others do.
    """
    merged_runs = _read_merged(store).num_parts
    finished = {run for run, files in run_files(store).items() if is_finished(files) and "keys.parquet" in files}
    if len(finished - set(merged_runs)) < min_runs:
        return
    files = dict(_read_key_files(store, sorted(finished)))
    keys = (table for file in files.values() for table in _keys_in(file))
    metadata = {"runs": {run: _num_parts(file) for run, file in files.items()}}
    data = output.parquet_stream(keys, KEYS_SCHEMA, metadata)
    with contextlib.suppress(FileExistsError):  # an attempt that was cut off afterwards merged the same runs
        store.create(f"{KEYS_FOLDER}/{len(finished):08d}.parquet", data)


def _read_key_files(store: Store, runs: list[str]) -> Iterator[tuple[str, pq.ParquetFile]]:
    return zip(runs, _in_turn(lambda run: _open(store, run_file(run, "keys.parquet")), runs), strict=True)


def _open(store: Store, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(arrow_file(store.read(path)))


def _num_parts(file: pq.ParquetFile) -> int | None:
    """How many parts the run of a key file had; None in a file of an older version."""
    return output.parquet_metadata(file.schema_arrow).get("num_parts")


def _keys_in(file: pq.ParquetFile) -> Iterator[pa.Table]:
    groups = map(file.read_row_group, range(file.num_row_groups))
    return (_completed(group.replace_schema_metadata(None)) for group in groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Merged:
    """The greatest merged key file."""

    file: pq.ParquetFile | None = None
    num_parts: dict[str, int | None] = field(default_factory=dict)
    """The runs that it stands for, and how many parts each had; None: it does not tell."""

    def keys(self) -> Iterator[pa.Table]:
        """Of all these runs."""
        return iter(()) if self.file is None else _keys_in(self.file)


def _read_merged(store: Store) -> _Merged:
    files = store.list(KEYS_FOLDER)
    if not files:
        return _Merged()
    file = _open(store, files[-1])
    runs = output.parquet_metadata(file.schema_arrow)["runs"]
    num_parts = runs if isinstance(runs, dict) else dict.fromkeys(runs)  # a list in older versions
    return _Merged(file=file, num_parts=num_parts)
