"""Downloads files of a remote folder (a checkpoint) to a local cache, once per machine and version."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from vidray.errors import UsageError
from vidray.storage.failures import describe, is_outage
from vidray.storage.location import Location
from vidray.storage.retry import raise_run_error, with_retries
from vidray.storage.versions import etag_of


def localize(folder: Location, names: Sequence[str], cache_root: str | os.PathLike[str]) -> str:
    """Downloads files of a remote folder to a local one, once per machine and version.

    Args:
        folder: a folder that is not on a local disk.
        names: names or patterns (``*.json``) of files directly in it; those that it lacks are left out.
        cache_root: local folder for all such copies. Many processes may ask at once: one copy wins, all are whole.

    Returns:
        The local folder's path.

    Raises:
        UsageError: there is no such folder, it has none of these files, or it cannot be read.
        RunError: the store is away until the deadline, or the disk is full.
    """
    files = _matching_files(folder, names)
    version = json.dumps([folder.uri, *([name, etag, size] for name, etag, size in files)])
    target = os.path.join(cache_root, hashlib.sha256(version.encode()).hexdigest()[:32])
    if not os.path.isdir(target):
        _download(folder, files, target)
    return target


_File = tuple[str, str | None, int | None]
"""(name, etag, size_bytes)"""


def _matching_files(folder: Location, names: Sequence[str]) -> list[_File]:
    try:
        folder.fs.invalidate_cache()
        entries = with_retries(lambda: folder.fs.ls(folder.path, detail=True), what=folder.uri)
    except Exception as error:
        _raise_unreadable(error, f"cannot list the folder {folder.uri}")
    files = []
    for entry in entries:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "file" and any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
            files.append((name, etag_of(entry), entry.get("size")))
    if not files:
        raise UsageError(f"the folder {folder.uri} has none of {', '.join(names)}")
    return sorted(files)


def _download(folder: Location, files: list[_File], target: str) -> None:
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    os.makedirs(temporary)
    try:
        for name, _, size in files:
            _download_file(folder, name, size, os.path.join(temporary, name))
        if _matching_files(folder, [name for name, _, _ in files]) != files:
            raise UsageError(f"the folder {folder.uri} changed while it was read; try again")
        _rename_unless_there(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _download_file(folder: Location, name: str, size: int | None, target: str) -> None:
    uri = folder.uri_of(folder.join(name))
    try:
        with_retries(partial(folder.fs.get_file, folder.join(name), target), what=uri)
    except Exception as error:
        _raise_unreadable(error, f"cannot read {uri}")
    if size is not None and os.path.getsize(target) != size:
        raise UsageError(f"the folder {folder.uri} changed while it was read; try again")


def _raise_unreadable(error: Exception, doing: str) -> NoReturn:
    """A store that is away is no mistake of the user; nor is a full disk."""
    if is_outage(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        raise_run_error(error, doing)
    raise UsageError(f"{doing}: {describe(error)}") from error


def _rename_unless_there(temporary: str, target: str) -> None:
    try:
        os.rename(temporary, target)
    except OSError as error:  # another process was faster, with a copy of the same version
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
