"""File systems as tests need them, and names that stores must take literally."""

from __future__ import annotations

from typing import Any

import fsspec

from vidray.storage.location import locate

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


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, local ones too, and the path on it."""
    place = locate(uri)
    return place.fs or fsspec.filesystem("file"), place.path
