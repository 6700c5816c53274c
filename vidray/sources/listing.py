"""Walks over folders, object stores and web pages, in parallel, with rows that go straight into Arrow batches.

A million objects as one fsspec dict each would take gigabytes; here they take what their Arrow columns take.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol

import pyarrow as pa

from vidray.errors import RunError
from vidray.storage.location import Location, etag_of, local_etag, locate, split_bucket
from vidray.storage.retry import is_access_denied, with_retries

MANIFEST_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("label", pa.string()),
    ]
)
"""One row per video. ``path`` is null unless ``uri`` cannot spell the path (local names that are not UTF-8).
``size_bytes`` and ``etag`` are null if there was no such object, or it may not be read, or the source does not tell."""

_ROWS_PER_BATCH = 65_536
_FILES_PER_TASK = 1_000
_INFOS_PER_TASK = 32
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})

Version = tuple[int | None, str | None]
"""(size_bytes, etag)"""


class Filter(Protocol):
    """Which files of a walk count. Paths are relative to where the walk starts, with ``/`` between parts."""

    def keeps(self, path: str) -> bool:
        """True if this file is a row."""

    def enters(self, path: str) -> bool:
        """True if files below this folder may be rows."""


class Rows:
    """Collects rows from many threads into Arrow batches."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_skipped = 0
        """Files seen that the filter did not keep."""
        self._lock = threading.Lock()
        self._columns: list[list[Any]] = [[] for _ in MANIFEST_SCHEMA]
        self._batches: list[pa.RecordBatch] = []

    def add(
        self,
        uris: Sequence[str],
        versions: Sequence[Version],
        *,
        paths: Sequence[bytes | None] | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> None:
        """Appends rows; all sequences have one entry per row."""
        nulls = [None] * len(uris)
        sizes = [size for size, _ in versions]
        etags = [etag for _, etag in versions]
        # Said, not inferred: what mypy joins these types to depends on its hash seed.
        added: tuple[Sequence[Any], ...] = (uris, paths or nulls, sizes, etags, labels or nulls)
        with self._lock:
            for column, values in zip(self._columns, added, strict=True):
                column.extend(values)
            self.num_rows += len(uris)
            if len(self._columns[0]) >= _ROWS_PER_BATCH:
                self._flush()

    def skip(self, count: int) -> None:
        """Counts files that were seen and not kept."""
        with self._lock:
            self.num_skipped += count

    def table(self) -> pa.Table:
        """All rows so far, in no particular order."""
        with self._lock:
            self._flush()
            return pa.Table.from_batches(self._batches, MANIFEST_SCHEMA)

    def _flush(self) -> None:
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, MANIFEST_SCHEMA, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=MANIFEST_SCHEMA))
        self._columns = [[] for _ in MANIFEST_SCHEMA]


class Tasks:
    """A pool of threads whose tasks may spawn further tasks. The first error ends them all."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="vidray-list")
        self._results: SimpleQueue[BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_open = 0
        self._is_over = False

    @property
    def num_idle(self) -> int:
        """How many more tasks would start at once."""
        return max(0, self.num_threads - self._num_open)

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Raises CancelledError if nobody waits for this task any more. For tasks that take long."""
        if self._is_over:
            raise CancelledError

    def spawn(self, task: Callable[..., None], *args: Any) -> None:
        """Runs ``task(*args)`` on the pool."""
        with self._lock:
            self._num_open += 1
        self._pool.submit(self._run, task, args)

    def join(self, on_step: Callable[[], None]) -> None:
        """Waits until every task has ended, those spawned meanwhile too; calls ``on_step`` after each."""
        while self._num_open:
            error = self._results.get()
            with self._lock:
                self._num_open -= 1
            if error is not None:
                raise error
            on_step()

    def _run(self, task: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            task(*args)
        except BaseException as error:
            self._results.put(error)
        else:
            self._results.put(None)


def walk(place: Location, keep: Filter, rows: Rows, tasks: Tasks, *, name_start: str = "") -> None:
    """Spawns the tasks that list every file below a folder.

    Args:
        place: the folder.
        keep: which files become rows.
        rows: where they go.
        tasks: the pool; the walk is over when its ``join`` returns.
        name_start: only names that start so are asked for, where the store can do that.

    Raises:
        OSError: a folder cannot be listed (from ``join``). Nothing is left out silently.
    """
    if place.kind == "local":
        tasks.spawn(_walk_local, place.path, "", frozenset(), keep, rows, tasks)
    elif place.kind == "s3":
        from vidray.sources.listing_s3 import S3Walk

        bucket, key = split_bucket(place.path)
        folder = f"{key}/" if key else ""
        S3Walk(
            place=place, bucket=bucket, folder=folder, name_start=name_start, keep=keep, rows=rows, tasks=tasks
        ).start()
    else:
        tasks.spawn(_walk_any, place, place.path, "", keep, rows, tasks)


def version_at(place: Location) -> Version | None:
    """The object's size and etag now; None if there is none (a folder is none), or it may not be read.

    Raises:
        Exception: the store could not be asked, after retries.
    """
    if place.kind == "local":
        return None if os.path.isdir(place.path) or not os.path.lexists(place.path) else local_version(place.path)
    bucket, key = split_bucket(place.path)
    if place.kind == "s3" and not key:
        return None
    try:
        if place.kind == "s3":
            head = with_retries(lambda: place.fs.call_s3("head_object", Bucket=bucket, Key=key))
            return head["ContentLength"], etag_of(head)
        info = with_retries(lambda: place.fs.info(place.path))
        return (info.get("size"), etag_of(info)) if info["type"] == "file" else None
    except Exception as error:
        if isinstance(error, FileNotFoundError) or is_access_denied(error):
            return None
        raise


def local_version(path: str) -> Version:
    """A local file's size and etag; (None, None) if there is none, or its folder lets nobody look."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in _GONE or isinstance(error, PermissionError):
            return None, None
        raise
    return status.st_size, local_etag(status)


def spell(path: str) -> tuple[str, bytes | None]:
    """(uri, path) of a local path as ``os`` gives it: a name that is not UTF-8 shows such bytes as ``\\xff``."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(path)
        return raw.decode("utf-8", "backslashreplace"), raw
    return path, None


def add_versions(uris: Sequence[str], labels: Sequence[str | None] | None, rows: Rows, tasks: Tasks) -> None:
    """Spawns tasks that add these URIs as rows, with the size and etag that each has now."""
    for start in range(0, len(uris), _INFOS_PER_TASK):
        chunk = slice(start, start + _INFOS_PER_TASK)
        tasks.spawn(_add_versions, uris[chunk], labels[chunk] if labels else None, rows)


def _add_versions(uris: Sequence[str], labels: Sequence[str | None] | None, rows: Rows) -> None:
    rows.add(uris, [version_at(locate(uri)) or (None, None) for uri in uris], labels=labels)


def _walk_local(
    folder: str, relative: str, above: frozenset[tuple[int, int]], keep: Filter, rows: Rows, tasks: Tasks
) -> None:
    """Lists one folder. ``above``: device and inode of the folders on the way to it, so that a link back up ends."""
    names: list[str] = []
    num_skipped = 0
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                path = relative + entry.name
                if _is_folder(entry):
                    if keep.enters(path):
                        tasks.spawn(_walk_local, entry.path, f"{path}/", above | {here}, keep, rows, tasks)
                elif keep.keeps(path):
                    names.append(entry.path)
                else:
                    num_skipped += 1
    except FileNotFoundError:
        if not relative:  # below, it was removed after its parent was listed
            raise
    rows.skip(num_skipped)
    for start in range(_FILES_PER_TASK, len(names), _FILES_PER_TASK):
        tasks.spawn(_add_local, names[start : start + _FILES_PER_TASK], rows)
    _add_local(names[:_FILES_PER_TASK], rows)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself: no folder, so it becomes a row that cannot be found
        return False


def _add_local(paths: list[str], rows: Rows) -> None:
    spelled = [spell(path) for path in paths]
    rows.add([uri for uri, _ in spelled], [local_version(path) for path in paths], paths=[raw for _, raw in spelled])


def _walk_any(place: Location, folder: str, relative: str, keep: Filter, rows: Rows, tasks: Tasks) -> None:
    """Lists one folder with fsspec's ``ls``."""
    entries = with_retries(lambda: _list_folder(place, folder))
    start = len(folder.rstrip("/")) + 1
    uris: list[str] = []
    versions: list[Version] = []
    for entry in entries:
        name = entry["name"].rstrip("/")[start:]
        if not name or not entry["name"].startswith(folder.rstrip("/") + "/"):
            continue  # the folder itself, as a marker object or a link to it
        if entry["type"] == "directory":
            if keep.enters(relative + name):
                tasks.spawn(_walk_any, place, entry["name"], f"{relative}{name}/", keep, rows, tasks)
        elif keep.keeps(relative + name):
            uris.append(place.uri_of(entry["name"]))
            versions.append((entry.get("size"), etag_of(entry)))
        else:
            rows.skip(1)
    if place.kind == "http":  # a page of links tells neither sizes nor etags
        add_versions(uris, None, rows, tasks)
    else:
        rows.add(uris, versions)


def _list_folder(place: Location, folder: str) -> list[dict[str, Any]]:
    place.fs.invalidate_cache()
    try:
        return place.fs.ls(folder, detail=True)
    except NotADirectoryError as error:
        raise RunError(f"{place.uri_of(folder)} was a folder and is none now") from error
