"""The parts of an output as one pyarrow dataset: a query reads only the columns that it names, from any store.

DuckDB is given the dataset and never a path, so it needs no access to files at all (`session.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from vidray.errors import RunError
from vidray.results.merged import FOLDER, find_row_files
from vidray.scoring.output import PREDICTION_SCHEMA
from vidray.storage.arrow_file import arrow_file
from vidray.storage.failures import describe
from vidray.storage.store import Store

WHOLE_BYTES = 8 * 1024**2
"""An object of at most so many bytes is read in one request: its footer and columns one by one would take several."""
_NUM_THREADS = 16
_READAHEAD = 8
"""Objects that are read at once."""


class Parts:
    """All rows of an output, one for each attempt.

    Raises:
        RunError: there are none, or the store failed, or a part is damaged.
    """

    def __init__(self, store: Store) -> None:
        sizes = find_row_files(store).sizes
        if not sizes:
            raise RunError(f"{store.uri} holds no rows of vidray score{_unfinished(store)}")
        self._files = StoreFiles(store, sizes)
        schemas = _schemas(store, _one_of_each_folder(sizes))
        self.schema, self.left_out = unified(schemas)
        """PREDICTION_SCHEMA and the kept columns; and the kept columns whose types contradict each other."""
        self.dataset = _dataset(list(sizes), self.schema, self._filesystem(store.uri))
        """Null where a part of an older version lacks a column."""

    def _filesystem(self, uri: str) -> pafs.FileSystem:
        """Arrow's own for a disk, where it takes half the time."""
        return pafs.PyFileSystem(self._files) if "://" in uri else pafs.SubTreeFileSystem(uri, pafs.LocalFileSystem())

    @property
    def failure(self) -> RunError | None:
        """Why the store did not give an object, if it did not: engines tell it in words of their own."""
        return self._files.failure


class _Dataset(ds.FileSystemDataset):
    """Scanned without keeping the footers of its files, of which a year of nights has 6 GB. Each scan has fragments of
    its own: one that forgets a footer takes it from others that read the same fragment, and the process dies (PyArrow
    26, ``ParquetFileFragment::ClearCachedMetadata``)."""

    def scanner(self, **options: Any) -> _Scanner:
        fragments = _fragments(self.format, self.files, self.filesystem)
        own = ds.FileSystemDataset(fragments, self.schema, self.format, self.filesystem)
        return _Scanner(own.scanner(**{"cache_metadata": False, "fragment_readahead": _READAHEAD} | options))


class _Scanner:
    """What DuckDB needs of a scanner. Arrow's own ``to_reader`` holds Python's lock while it waits for another, which a
    thread of Arrow's may have that wants Python's to tell an error: both then wait for ever (PyArrow 26)."""

    def __init__(self, scanner: ds.Scanner) -> None:
        self._scanner = scanner

    def to_reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._scanner.projected_schema, self._scanner.to_batches())


def _dataset(paths: Sequence[str], schema: pa.Schema, filesystem: pafs.FileSystem) -> ds.Dataset:
    parquet = ds.ParquetFileFormat()
    return _Dataset(_fragments(parquet, paths, filesystem), schema, parquet, filesystem)


def _fragments(parquet: ds.FileFormat, paths: Iterable[str], filesystem: pafs.FileSystem) -> list[ds.Fragment]:
    return [parquet.make_fragment(path, filesystem=filesystem) for path in paths]


def _unfinished(store: Store) -> str:
    return "; a run has begun, and has no part yet" if store.list("_runs") else ""


def _one_of_each_folder(paths: Iterable[str]) -> list[str]:
    """All parts of a run have one schema; merged copies of many may have several."""
    folders = {path if path.startswith(FOLDER) else path.rpartition("/")[0]: path for path in paths}
    return list(folders.values())


def _schemas(store: Store, paths: Sequence[str]) -> list[pa.Schema]:
    def schema(path: str) -> pa.Schema:
        try:
            return pq.read_schema(arrow_file(store.read(path))).remove_metadata()
        except pa.ArrowException as error:
            raise RunError(f"{store.uri_for(path)} cannot be read: {describe(error)}") from error

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(schema, paths))


def unified(schemas: Iterable[pa.Schema]) -> tuple[pa.Schema, tuple[str, ...]]:
    """PREDICTION_SCHEMA and then the columns that runs kept from manifests, each with a type that holds all of its
    values; and the names of those for which there is no such type."""
    kept: dict[str, list[pa.Field]] = {}
    for schema in dict.fromkeys(schemas):
        for field in schema:
            if field.name not in PREDICTION_SCHEMA.names:
                kept.setdefault(field.name, []).append(field)
    fields, left_out = list(PREDICTION_SCHEMA), []
    for name, ones in kept.items():
        try:
            fields.append(pa.unify_schemas([pa.schema([one]) for one in ones], promote_options="permissive").field(0))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            left_out.append(name)
    return pa.schema(fields), tuple(left_out)


class StoreFiles(pafs.FileSystemHandler):
    """Some objects of a store as a read-only file system of Arrow's, waited for as the store waits."""

    def __init__(self, store: Store, sizes: dict[str, int]) -> None:
        """``sizes``: of each object that may be opened, its path in the store and its bytes."""
        self._store, self._sizes = store, sizes
        self.failure: RunError | None = None

    def open_input_file(self, path: str) -> pa.NativeFile:
        """The object, for random access."""
        if path not in self._sizes:
            raise FileNotFoundError(path)
        if self._sizes[path] <= WHOLE_BYTES:
            return arrow_file(self._told(self._store.read, path))
        return pa.PythonFile(_RangeFile(self, path, self._sizes[path]), mode="r")

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """As the store's; a failure is kept."""
        return self._told(self._store.read_range, path, start, stop)

    def _told(self, read: Callable[..., bytes], *of: Any) -> bytes:
        try:
            return read(*of)
        except (RunError, FileNotFoundError) as error:
            self.failure = error if isinstance(error, RunError) else RunError(f"{error} is gone")
            raise OSError(str(error)) from error

    def get_type_name(self) -> str:
        """For messages of Arrow's."""
        return "vidray"

    def normalize_path(self, path: str) -> str:
        """As it is."""
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        """Files, or nothing."""
        kinds = ((path, self._sizes.get(path)) for path in paths)
        return [
            pafs.FileInfo(path, pafs.FileType.NotFound if size is None else pafs.FileType.File, size=size or 0)
            for path, size in kinds
        ]

    def _refuse(self, *_: Any) -> NoReturn:
        raise PermissionError("an output is read only")

    open_input_stream = open_input_file
    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse


class _RangeFile(io.RawIOBase):
    """A large object, of which only what is asked for is read."""

    def __init__(self, files: StoreFiles, path: str, size: int) -> None:
        self._files, self._path, self._size, self._at = files, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        data = self._files.read_range(self._path, self._at, stop) if stop > self._at else b""
        self._at += len(data)
        return data
