"""Lists the videos in a tar file: from its headers alone, which are read in parts of the object.

A member is known by its name, which is never opened as a path. What a tar file says is not trusted: any damage ends its
listing, with a row of the tar file's own, beside those of the members before it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vidray.errors import UsageError, VideoError
from vidray.sources.patterns import FileFilter
from vidray.sources.rows import RowCollector, spell, video_of
from vidray.storage.fetch import RangesRefusedError, fetch_range
from vidray.types import Limits, Status, TarMember, VideoRef

TAR = ".tar"
TAR_URI = r"(?i)\.tar$"
"""URIs of tar files."""

_SIDECARS = (".json", ".cls", ".txt")
_PAGE_BYTES = 1 << 18
"""Read at once. Small members come along with their headers, large ones are jumped over."""
_LIMITS = Limits(max_object_bytes=1 << 62)
"""A tar file is never held as a whole."""

_Problem = tuple[Status, str]


def index_shard(shard: dict[str, Any], videos: FileFilter, rows: RowCollector) -> None:
    """Adds a row for each member that is a video by its name, and one for the tar file itself if it is damaged, or
    cannot be read. Of members with one name the last counts, as for whoever unpacks it.

    Args:
        shard: the tar file's row of a listing.
        videos: what counts as a video.
        rows: gets the rows.
    """
    ref = video_of(shard)
    if ref.size_bytes is None:  # there is none: fetching it says why
        rows.add([ref.uri], [(None, None)], paths=[ref.path], **_of_source(shard, 1))
        return
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    left: list[str | None] = []
    problem: _Problem | None = None
    try:
        for info in _members(ref):
            if info.isdir():
                continue
            if not videos.keeps(info.name):
                left += [] if info.name.lower().endswith(_SIDECARS) else [videos.kind_left(info.name)]
                continue
            uri = f"{ref.uri}#{spell(info.name)[0]}"
            left += ["of a name that comes again in its tar file"] if uri in found else []
            found[uri] = info.size, _member(ref, info.offset_data, _why_not(info, ref.size_bytes))
    except UsageError:
        raise
    except VideoError as error:
        problem = error.status, error.message
    except RangesRefusedError as error:
        problem = Status.UNSUPPORTED, f"tar files need a store that gives parts of objects: {error}"
    except Exception as error:  # tarfile raises much besides its own errors for bytes that make no sense
        problem = Status.CORRUPT, f"damaged tar file, members may be missing: {error or type(error).__name__}"
    if problem is not None:
        found[ref.uri] = ref.size_bytes, _member(ref, 0, problem)
    rows.skip(left)
    rows.add(
        list(found),
        [(size, ref.etag) for size, _ in found.values()],
        paths=[ref.path] * len(found),
        tar_members=[member for _, member in found.values()],
        **_of_source(shard, len(found)),
    )


def _of_source(shard: dict[str, Any], num_rows: int) -> dict[str, Any]:
    return {"labels": [shard["label"]] * num_rows, "spans": [(shard["start_seconds"], shard["end_seconds"])] * num_rows}


def _member(shard: VideoRef, offset: int, problem: _Problem | None) -> dict[str, Any]:
    status, error = problem or (None, None)
    size = shard.size_bytes or 0
    return asdict(TarMember(shard=shard.uri, offset=offset, shard_bytes=size, status=status, error=error))


def _why_not(info: tarfile.TarInfo, shard_bytes: int) -> _Problem | None:
    if info.issparse() or not info.isreg():
        return Status.UNSUPPORTED, "a link, a sparse file or something else than a plain file in a tar file"
    if info.offset_data + info.size > shard_bytes:
        return Status.CORRUPT, f"the tar file ends within it, {info.offset_data + info.size - shard_bytes} bytes early"
    return None


def _members(shard: VideoRef) -> Iterator[tarfile.TarInfo]:
    """Raises VideoError, RangesRefusedError, and whatever tarfile does."""
    file = _RangedFile(shard)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        last = -1
        while (info := tar.next()) is not None:
            if info.size < 0 or info.offset_data <= last:
                raise tarfile.ReadError(f"a member of {info.size} bytes at byte {info.offset_data}")
            last = info.offset_data
            yield info
        # It takes any block that is no header for the end.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"neither a header nor the end of it is at byte {tar.offset}")


class _RangedFile(io.RawIOBase):
    """An object as a file, of which the parts that are looked at are fetched."""

    def __init__(self, ref: VideoRef) -> None:
        if ref.etag is None:
            raise VideoError(Status.UNSUPPORTED, "tar files need a store that tells versions of objects (ETag)")
        self._ref = ref
        self._num_bytes = ref.size_bytes or 0
        self._at = self._start = 0
        self._page = b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < 0:
            raise tarfile.ReadError(f"a place {offset} bytes from the start")
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _PAGE_BYTES:  # it would be held in memory
            raise tarfile.ReadError(f"a header of {size} bytes")
        start, stop = self._at, min(self._at + size, self._num_bytes)
        if start >= stop:
            return b""
        if not self._start <= start < stop <= self._start + len(self._page):
            end = min(start + _PAGE_BYTES, self._num_bytes)
            self._start, self._page = start, fetch_range(self._ref, start=start, stop=end, limits=_LIMITS)
        self._at = stop
        return self._page[start - self._start : stop - self._start]
