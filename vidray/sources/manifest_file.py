"""Reads manifests and other table files: CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vidray.errors import UsageError
from vidray.sources.rows import SPAN, Span
from vidray.storage.arrow_file import arrow_file
from vidray.storage.failures import Failure, classify, describe
from vidray.storage.location import Location, locate
from vidray.storage.retry import raise_run_error, with_retries
from vidray.storage.versions import unquote_etag

_EXTENSIONS = (".csv", ".jsonl", ".ndjson", ".parquet")
COLUMNS = ("uri", "size_bytes", "etag", "label", *SPAN)
"""The columns of a manifest that count; all but the first may be missing."""


class ManifestRecord(NamedTuple):
    """One row of a manifest, parsed. A tuple, because a million of them are made, and frozen dataclasses are slower."""

    place: Location
    size_bytes: int | None
    etag: str | None
    """None: the manifest has none, so the object is looked up."""
    label: str | None
    span: Span = (None, None)
    """The part of the video that counts."""


def is_manifest(place: Location) -> bool:
    """True if the name is that of a manifest, and it is no local folder."""
    return extension_of(place) in _EXTENSIONS and not (place.kind == "local" and os.path.isdir(place.path))


def read_manifest(manifest: Location) -> Iterator[ManifestRecord]:
    """The records of a manifest file. Raises UsageError as `read_rows` and `parse_records` do."""
    return parse_records(manifest, read_rows(manifest, COLUMNS))


def read_rows(
    manifest: Location,
    columns: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    data: bytes | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of a table file; values of a CSV file are text.

    Args:
        manifest: the file.
        columns: read only these where the format allows it (Parquet does). None: all.
        names: of the columns of a CSV file without a header.
        data: its bytes, where they are at hand.

    Raises:
        UsageError: it does not exist, or cannot be understood.
    """
    data = read_bytes(manifest) if data is None else data
    try:
        match extension_of(manifest):
            case ".csv":
                yield from csv.DictReader(_text(data, newline=""), names, strict=True)
            case ".parquet":
                file = arrow_file(data)
                del data  # it is a copy, and each may be a gigabyte
                yield from _read_parquet(file, columns)
            case _:
                yield from _read_json_lines(_text(data))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot read the manifest {manifest.uri}: {error}") from error


def read_bytes(place: Location) -> bytes:
    """A whole file.

    Raises:
        UsageError: there is none, or it may not be read.
        RunError: the store failed.
    """
    try:
        return with_retries(lambda: _read(place), what=place.uri)
    except Exception as error:
        if isinstance(error, IsADirectoryError) or classify(error) in (Failure.NOT_FOUND, Failure.ACCESS_DENIED):
            raise UsageError(f"cannot read {place.uri}: {describe(error)}") from error
        raise_run_error(error, f"cannot read {place.uri}")


def parse_records(manifest: Location, rows: Iterable[dict[str, Any]]) -> Iterator[ManifestRecord]:
    """Parses the rows of a manifest; relative URIs start at its folder.

    Raises:
        UsageError: there is no column ``uri``, or a row cannot be understood; the message says which.
    """
    for number, row in enumerate(rows, 1):
        if number == 1 and "uri" not in row:
            raise UsageError(f"the manifest {manifest.uri} needs a column 'uri', found {', '.join(map(str, row))}")
        try:
            yield _parse_record(manifest, row)
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise UsageError(f"row {number} of the manifest {manifest.uri}: {error}") from error


def extension_of(place: Location) -> str:
    """Of a file's name, in lower case, with its dot."""
    path = urlsplit(place.path).path if place.kind == "http" else place.path
    return os.path.splitext(path)[1].lower()


def _read(place: Location) -> bytes:
    if place.kind == "local":
        with open(place.path, "rb") as file:
            return file.read()
    return place.fs.cat_file(place.path)


def _parse_record(manifest: Location, row: dict[str, Any]) -> ManifestRecord:
    uri, size, etag, label, start, end = map(row.get, COLUMNS)
    if not isinstance(uri, str) or not uri:
        raise ValueError(f"uri must be text, got {uri!r}")
    return ManifestRecord(
        place=locate(absolute_uri(manifest, uri)),
        size_bytes=None if size in (None, "") else int(size),
        etag=unquote_etag(str(etag)) if etag else None,
        label=None if label in (None, "") else str(label),
        span=span_of(start, end),
    )


def span_of(start: Any, end: Any) -> Span:
    """What the two columns of a manifest say; a start of 0 is none. Raises ValueError."""
    seconds = [None if value in (None, "") else float(value) for value in (start, end)]
    if not all(math.isfinite(value or 0.0) for value in seconds):
        raise ValueError(f"start_seconds and end_seconds must be finite, got {start} and {end}")
    # Keys hold whole microseconds.
    first, last = (None if value is None else round(value, 6) for value in seconds)
    if (first or 0.0) < 0 or (last is not None and last <= (first or 0.0)):
        raise ValueError(f"a span must end after it starts, and not start before 0, got {start} to {end} seconds")
    return first or None, last


def absolute_uri(manifest: Location, uri: str) -> str:
    """A manifest's uri, which may start at the folder of the manifest."""
    if "://" in uri or (uri.startswith("/") and manifest.kind == "local"):
        return uri
    folder = manifest.path.rpartition("/")[0]
    while uri.startswith(("./", "../")):
        first, _, uri = uri.partition("/")
        folder = folder.rpartition("/")[0] if first == ".." else folder
    return manifest.uri_of(f"{folder}/{uri}")


def _text(data: bytes, *, newline: str | None = None) -> io.TextIOWrapper:
    """The lines, decoded one after the other: as one text they would take four times the memory."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=newline)


def _read_json_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise json.JSONDecodeError("a line must be an object", line, 0)
            yield row


def _read_parquet(source: pa.BufferReader, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(source)
    found = file.schema_arrow.names
    if columns is not None:  # without a uri there will be a message, which names all columns
        columns = [name for name in columns if name in found] if "uri" in found else None
    for batch in file.iter_batches(columns=columns):
        yield from batch.to_pylist()
