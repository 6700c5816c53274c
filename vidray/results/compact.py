"""``vidray compact``: copies the rows of many small parts into few larger files, which queries then read instead."""

from __future__ import annotations

import dataclasses
import io
import json
import secrets
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.flags import shown_as
from vidray.results.merged import FOLDER, Group, RowFiles, find_row_files
from vidray.scoring.history import is_finished, run_files
from vidray.storage.arrow_file import arrow_file
from vidray.storage.failures import describe
from vidray.storage.store import Store

_FILE_BYTES = 32 * 1024**2
"""Parts of so many bytes together become one file: what reads files whole can hold some."""
_ROW_GROUP = 20_000
_AT_ONCE = 64
"""Parts that are held before they are merged."""
_NUM_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """Copy the rows of finished runs into few larger files, in _merged/ of the output, which vidray query and
    vidray.read read in place of thousands of parts. The parts stay, and the folder may be deleted at any time."""

    output: Annotated[str, shown_as("URI")]
    """The folder that vidray score wrote to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compaction:
    """What was merged."""

    num_runs: int
    num_parts: int
    num_files: int

    def __str__(self) -> str:
        if not self.num_runs:
            return "nothing to merge: no finished run that has not been merged has more than one part"
        return f"merged {self.num_parts:,} parts of {self.num_runs:,} runs into {self.num_files:,} files"


def compact(config: CompactConfig) -> Compaction:
    """Merge what is finished and not merged yet. Two commands at a time do no harm: one of them was for nothing.

    Raises:
        RunError: there are no rows, or a part is damaged, or the store failed.
    """
    store = Store(config.output)
    found = find_row_files(store)
    if not found.sizes:
        raise RunError(f"{store.uri} holds no rows of vidray score")
    runs = _to_merge(store, found)
    num_parts = sum(map(len, runs.values()))
    if num_parts <= 1:
        return Compaction(num_runs=0, num_parts=0, num_files=0)
    number = found.number + 1
    folder = f"{FOLDER}/{number:08d}-{secrets.token_hex(4)}"
    files: dict[str, int] = {}
    for data in _merged_files(store, [path for paths in runs.values() for path in paths]):
        path = f"{folder}/part-{len(files):05d}.parquet"
        store.create(path, data)
        files[path] = len(data)
    group = Group(runs={run: len(paths) for run, paths in runs.items()}, files=files)
    listed = {"groups": [dataclasses.asdict(one) for one in (*found.groups, group)]}
    try:
        store.create(f"{FOLDER}/{number:08d}.json", json.dumps(listed).encode())
    except FileExistsError:
        for path in files:
            store.delete(path)
        raise RunError(f"another vidray compact of {store.uri} was faster") from None
    return Compaction(num_runs=len(runs), num_parts=num_parts, num_files=len(files))


def _to_merge(store: Store, found: RowFiles) -> dict[str, list[str]]:
    finished = {run for run, files in run_files(store).items() if is_finished(files)}
    return {run: sorted(paths) for run, paths in sorted(found.parts.items()) if run in finished}


def _merged_files(store: Store, paths: list[str]) -> Iterator[bytes]:
    """Parts with the same columns, one after the other."""
    waiting: dict[pa.Schema, list[pa.Table]] = defaultdict(list)
    sizes: dict[pa.Schema, int] = defaultdict(int)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for at in range(0, len(paths), _AT_ONCE):
            for table, size in pool.map(lambda path: _read(store, path), paths[at : at + _AT_ONCE]):
                waiting[table.schema].append(table)
                sizes[table.schema] += size
                if sizes[table.schema] >= _FILE_BYTES:
                    yield _parquet(waiting.pop(table.schema))
                    del sizes[table.schema]
    yield from map(_parquet, waiting.values())


def _read(store: Store, path: str) -> tuple[pa.Table, int]:
    data = store.read(path)
    try:
        return pq.read_table(arrow_file(data)).replace_schema_metadata(None), len(data)
    except pa.ArrowException as error:
        raise RunError(f"{store.uri_for(path)} cannot be read: {describe(error)}") from error


def _parquet(tables: list[pa.Table]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()
