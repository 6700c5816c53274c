"""The headers of a tar file in a store, of which parts are fetched.

What it says is not trusted: it is read forwards, and little of it at a time.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from vidray.errors import VideoError
from vidray.storage import retry
from vidray.storage.fetch import fetch_range
from vidray.types import Limits, Status, VideoRef

_MIN_PAGE_BYTES, _MAX_PAGE_BYTES = 1 << 16, 1 << 20
"""Fetched at once: much where members are small and their headers come along with them, little where they are large
and are jumped over."""
_MAX_READ_BYTES = 1 << 18
"""Of a header, with the name and whatever else it has."""
_ANY_SIZE = 1 << 62
"""A tar file is never held as a whole."""


class RangedFile(io.RawIOBase):
    """An object as a file, of which the parts that are looked at are fetched."""

    def __init__(self, ref: VideoRef) -> None:
        """Raises VideoError if the store does not tell versions apart."""
        if ref.etag is None or ref.size_bytes is None:
            raise VideoError(Status.UNSUPPORTED, "tar files need a store that tells sizes and ETags of objects")
        self._ref, self._num_bytes = ref, ref.size_bytes
        self._at = self._start = 0
        self._page, self._page_bytes = b"", _MIN_PAGE_BYTES
        self._limits = Limits(max_object_bytes=_ANY_SIZE, fetch_deadline_seconds=retry.deadline_seconds())

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
        """Raises VideoError and RangesRefusedError, as `fetch_range`, and ReadError for what is no header."""
        if not 0 <= size <= _MAX_READ_BYTES:  # it would be held in memory
            raise tarfile.ReadError(f"a header of {size} bytes")
        start, stop = self._at, min(self._at + size, self._num_bytes)
        if start >= stop:
            return b""
        if not self._start <= start < stop <= self._start + len(self._page):
            self._fetch(start, stop)
        self._at = stop
        return self._page[start - self._start : stop - self._start]

    def _fetch(self, start: int, stop: int) -> None:
        is_near = start - self._start - len(self._page) < self._page_bytes
        self._page_bytes = min(2 * self._page_bytes, _MAX_PAGE_BYTES) if self._page and is_near else _MIN_PAGE_BYTES
        end = min(max(stop, start + self._page_bytes), self._num_bytes)
        self._start, self._page = start, fetch_range(self._ref, start=start, stop=end, limits=self._limits)


def members(file: RangedFile) -> Iterator[tarfile.TarInfo]:
    """The members in order; what has been yielded may be read before the next one is asked for.

    Raises:
        VideoError, RangesRefusedError: as `fetch_range`.
        Exception: it is damaged: tarfile raises much besides its own errors for bytes that make no sense.
    """
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
