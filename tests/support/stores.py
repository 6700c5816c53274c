"""Stores as tests need them: file systems, versions, and names that must be taken literally."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest

from vidray.storage.location import locate
from vidray.storage.versions import version_at
from vidray.types import VideoRef

STRANGE_NAMES = [
    "a b.mp4",
    "a#b.mp4",
    "a?versionId=3.mp4",
    "%41.mp4",
    "*[z]?.mp4",
    "http:x.mp4",
    "concat:a|b.mp4",
    "simplecache::s3:x.mp4",
    "new\nline.mp4",
    "é.mp4",
    "+&.mp4",
]

_STORES = ["local", "s3", "gcs", "azure", "memory"]
on_every_store = pytest.mark.parametrize("folder", _STORES, indirect=True)
on_remote_stores = pytest.mark.parametrize("folder", _STORES[1:], indirect=True)


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, local ones too, and the path on it."""
    place = locate(uri)
    return place.fs or fsspec.filesystem("file"), place.path


def ref_of(uri: str) -> VideoRef:
    """The object as a listing would name it now."""
    size, etag = version_at(locate(uri)) or (None, None)
    return VideoRef(uri=uri, size_bytes=size, etag=etag)


def overwrite(folder: str, name: str, data: bytes) -> None:
    """Replaces an object as somebody else would."""
    fs, path = filesystem(folder)
    fs.pipe_file(f"{path}/{name}", data)
