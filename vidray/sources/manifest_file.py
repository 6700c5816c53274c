"""Manifest files: CSV, JSON lines or Parquet with a column ``uri``."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vidray.errors import UsageError
from vidray.sources.listing import Rows, Tasks, add_versions
from vidray.storage.location import Location, locate, unquote_etag
from vidray.storage.retry import describe, is_access_denied, with_retries

_EXTENSIONS = (".csv", ".jsonl", ".ndjson", ".parquet")
_COLUMNS = ("uri", "size_bytes", "etag", "label")
_ROWS_PER_STEP = 10_000

_Record = tuple[str, int | None, str | None, str | None]
"""(uri, size_bytes, etag, label)"""


def is_manifest(place: Location) -> bool:
    """True if the name is that of a manifest, and it is no local folder."""
    return _extension(place) in _EXTENSIONS and not (place.kind == "local" and os.path.isdir(place.path))


def add_manifest(place: Location, rows: Rows, tasks: Tasks) -> None:
    """Adds a manifest's rows. Those without an etag are looked up, on the threads of ``tasks``.

    Raises:
        UsageError: it has no column ``uri``, or a row cannot be understood; the message says which.
        FileNotFoundError: there is no such file.
    """
    data = with_retries(lambda: _read(place))
    records = _records(place, data)
    while chunk := list(itertools.islice(records, _ROWS_PER_STEP)):
        known = [record for record in chunk if record[2] is not None]
        unknown = [record for record in chunk if record[2] is None]
        rows.add(
            [uri for uri, *_ in known],
            [(size, etag) for _, size, etag, _ in known],
            labels=[label for *_, label in known],
        )
        add_versions([uri for uri, *_ in unknown], [label for *_, label in unknown], rows, tasks)


def read_rows(place: Location) -> Iterator[dict[str, Any]]:
    """All columns of a table file, row by row; values of a CSV file are text.

    Raises:
        UsageError: it does not exist, or cannot be understood.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet_whole}
    try:
        yield from readers.get(_extension(place), _read_json_lines)(read_bytes(place))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot read {place.uri}: {error}") from error


def read_bytes(place: Location) -> bytes:
    """A whole file. Raises UsageError if there is none, or it may not be read."""
    try:
        return with_retries(lambda: _read(place))
    except OSError as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or is_access_denied(error):
            raise UsageError(f"cannot read {place.uri}: {describe(error)}") from error
        raise


def _extension(place: Location) -> str:
    path = urlsplit(place.path).path if place.kind == "http" else place.path
    return os.path.splitext(path)[1].lower()


def _read(place: Location) -> bytes:
    if place.kind == "local":
        with open(place.path, "rb") as file:
            return file.read()
    return place.fs.cat_file(place.path)


def _records(place: Location, data: bytes) -> Iterator[_Record]:
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    try:
        rows = readers.get(_extension(place), _read_json_lines)(data)
        for number, row in enumerate(rows, 1):
            if number == 1 and "uri" not in row:
                raise UsageError(f"the manifest {place.uri} needs a column 'uri', found {', '.join(map(str, row))}")
            try:
                yield _record(place, row)
            except (ValueError, KeyError, TypeError, UsageError) as error:
                raise UsageError(f"row {number} of the manifest {place.uri}: {error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot read the manifest {place.uri}: {error}") from error


def _record(place: Location, row: dict[str, Any]) -> _Record:
    uri, size, etag, label = (row.get(name) for name in _COLUMNS)
    if not isinstance(uri, str) or not uri:
        raise ValueError(f"uri must be text, got {uri!r}")
    return (
        locate(resolve(place, uri)).uri,
        None if size in (None, "") else int(size),
        unquote_etag(str(etag)) if etag else None,
        None if label in (None, "") else str(label),
    )


def resolve(place: Location, uri: str) -> str:
    """An absolute URI of what a manifest at ``place`` names; a relative one starts at the manifest's folder."""
    if "://" in uri or (uri.startswith("/") and place.kind == "local"):
        return uri
    folder = place.path.rpartition("/")[0]
    while uri.startswith(("./", "../")):
        first, _, uri = uri.partition("/")
        folder = folder.rpartition("/")[0] if first == ".." else folder
    return place.uri_of(f"{folder}/{uri}")


def _read_csv(data: bytes) -> Iterable[dict[str, Any]]:
    return csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)


def _read_json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise json.JSONDecodeError("a line must be an object", line.decode(errors="replace"), 0)
            yield row


def _read_parquet(data: bytes) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    found = file.schema_arrow.names
    for batch in file.iter_batches(columns=[name for name in _COLUMNS if name in found] if "uri" in found else None):
        yield from batch.to_pylist()


def _read_parquet_whole(data: bytes) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches():
        yield from batch.to_pylist()
