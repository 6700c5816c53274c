"""Versions of objects: a size, and an etag that changes when the object does."""

from __future__ import annotations

import datetime
import errno
import os
from collections.abc import Mapping
from typing import Any

from vidray.storage.failures import Failure, classify
from vidray.storage.location import Location, split_bucket
from vidray.storage.retry import with_retries

Version = tuple[int | None, str | None]
"""(size_bytes, etag). What the store does not tell is None; both are where there is no such object."""

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def version_at(place: Location) -> Version | None:
    """The object's version now; None if there is none (a folder is none), or it may not be read.

    Raises:
        Exception: the store could not be asked until the deadline.
    """
    if place.kind == "local":
        return None if os.path.isdir(place.path) or not os.path.lexists(place.path) else local_version(place.path)
    bucket, key = split_bucket(place.path)
    if place.kind == "s3" and not key:
        return None
    try:
        if place.kind == "s3":
            head = with_retries(lambda: place.fs.call_s3("head_object", Bucket=bucket, Key=key), what=place.uri)
            return head["ContentLength"], etag_of(head)
        info = with_retries(lambda: place.fs.info(place.path), what=place.uri)
        return (info.get("size"), etag_of(info)) if info["type"] == "file" else None
    except Exception as error:
        if classify(error) in (Failure.NOT_FOUND, Failure.ACCESS_DENIED):
            return None
        raise


def local_version(path: str) -> Version:
    """A local file's size and etag; (None, None) if there is none, or its folder may not be read."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in _GONE or isinstance(error, PermissionError):
            return None, None
        raise
    return status.st_size, local_etag(status)


def etag_of(info: Mapping[str, Any]) -> str | None:
    """What identifies this version of an object, from what its file system tells about it; None if it does not tell.

    GCS: the generation. S3, Azure and HTTP: the ETag without its quotes. HTTP without one: ``Last-Modified``. Memory:
    when it was created, and its size. Local files go by ``local_etag``.
    """
    if generation := info.get("generation"):
        return str(generation)
    if etag := info.get("ETag") or info.get("etag"):
        return unquote_etag(str(etag))
    if modified := info.get("Last-Modified") or info.get("last_modified") or info.get("mtime"):
        return str(modified)
    if created := info.get("created"):
        seconds = created.timestamp() if isinstance(created, datetime.datetime) else float(created)
        return f"{seconds:.6f}-{info.get('size')}"
    return None


def local_etag(status: os.stat_result) -> str:
    """``<mtime_ns>-<size>-<inode>``: what identifies this version of a local file."""
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def unquote_etag(etag: str) -> str:
    """An ETag without the quotes that HTTP puts around it; weak ones (``W/"..."``) keep theirs."""
    return etag[1:-1] if len(etag) >= 2 and etag[0] == etag[-1] == '"' else etag
