"""The bytes of a video, as something to read from that has no name: FFmpeg would open other files by it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Protocol

WINDOW_PAGES = 32
"""Pages of a `PagedFile` that are here at a time."""
_MOST_PAGES_AT_ONCE = 8


class SeekableFile(Protocol):
    """What FFmpeg reads a video from."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class DescriptorFile:
    """The first ``num_bytes`` of a file descriptor, which stays open: of a long video only what is read is copied."""

    def __init__(self, fd: int, num_bytes: int) -> None:
        self._fd, self._num_bytes = fd, num_bytes
        self._position = 0

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; nothing at the end."""
        data = os.pread(self._fd, max(0, min(size, self._num_bytes - self._position)), self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """To ``offset`` from the start, from here or from the end (``os.SEEK_SET``, ``SEEK_CUR``, ``SEEK_END``)."""
        self._position = _target(offset, whence, position=self._position, num_bytes=self._num_bytes)
        return self._position

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position


class NeedsWholeFileError(Exception):
    """The video cannot be read in parts with certainty, or not with any gain."""


class PagedFile:
    """A file of which only some pages are here at a time, in a window of ``WINDOW_PAGES``. Reading brings those that it
    meets: one, and more at once where one was read after the other.

    It never raises while it is read, since FFmpeg may go on after an error: it ends, and says so (``has_given_up``).
    """

    def __init__(
        self,
        fd: int,
        *,
        num_bytes: int,
        page_bytes: int,
        bring: Callable[[int, int, int], None],
        max_pages: int | None = None,
    ) -> None:
        """Args:
        fd: the window; its slots, of ``page_bytes`` each, hold the pages.
        num_bytes: of the file.
        bring: puts so many pages, from one of them on, into the slots from one of them on: (page, count, slot).
        max_pages: that are brought in all; beyond, it gives up. None: as many as the file has, for then it would
            have been cheaper to take it whole.
        """
        self._fd, self._num_bytes, self._page_bytes, self._bring = fd, num_bytes, page_bytes, bring
        self._num_pages = count_pages(num_bytes, page_bytes)
        self._num_left = self._num_pages if max_pages is None else max_pages
        self._position = 0
        self._slots: dict[int, int] = {}  # of the pages that are here
        self._pages: list[int | None] = [None] * WINDOW_PAGES  # in the slots, which are filled in turn
        self._next_slot = 0
        self._ahead: dict[int, int] = {}  # where a piece that was brought ends: how many pages it had
        self.has_given_up = False

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; fewer only at the end, or where it gives up."""
        stop, pieces = min(self._position + size, self._num_bytes), []
        while self._position < stop:
            page, offset = divmod(self._position, self._page_bytes)
            if page not in self._slots and not self._bring_from(page):
                break
            length = min(stop - self._position, self._page_bytes - offset)
            pieces.append(os.pread(self._fd, length, self._slots[page] * self._page_bytes + offset))
            self._position += length
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As `DescriptorFile.seek`."""
        self._position = _target(offset, whence, position=self._position, num_bytes=self._num_bytes)
        return self._position

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def _bring_from(self, page: int) -> bool:
        """Bring a page. False if it gives up."""
        ahead = self._ahead.pop(page, 0)
        most = min(max(1, 2 * ahead), _MOST_PAGES_AT_ONCE, self._num_pages - page, WINDOW_PAGES - self._next_slot)
        most = min(most, self._num_left)
        count = next((number for number in range(most) if page + number in self._slots), most)
        if count == 0:
            self.has_given_up, self._num_left = True, 0
            return False
        self._bring(page, count, self._next_slot)
        for slot, brought in enumerate(range(page, page + count), start=self._next_slot):
            old = self._pages[slot]
            if old is not None:
                del self._slots[old]
            self._pages[slot], self._slots[brought] = brought, slot
        self._next_slot = (self._next_slot + count) % WINDOW_PAGES
        self._ahead[page + count] = max(count, ahead)
        self._num_left -= count
        return True


class HollowFile:
    """A file that reads as zeros in some places, where the real one is not touched; once ``is_hollow`` is set."""

    def __init__(self, file: SeekableFile, holes: Sequence[tuple[int, int]]) -> None:
        """Args:
        holes: (start, stop) of each, sorted, within the file.
        """
        self._file, self._holes = file, holes
        self.is_hollow = False

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes: none from two sides of an edge at once."""
        here = self._file.tell()
        for start, stop in self._holes if self.is_hollow else ():
            if start <= here < stop:
                size = min(size, stop - here)
                self._file.seek(here + size)
                return bytes(size)
            if here < start:
                return self._file.read(min(size, start - here))
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As `DescriptorFile.seek`."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._file.tell()


def count_pages(num_bytes: int, page_bytes: int) -> int:
    """Pages of a file; the last may be short."""
    return -(-num_bytes // page_bytes)


def as_file(data: bytes | memoryview | SeekableFile) -> SeekableFile:
    """``data`` to be read from its start."""
    if isinstance(data, bytes | memoryview):
        return io.BytesIO(data)
    data.seek(0)
    return data


def size_and_head(data: bytes | memoryview | SeekableFile, num_head_bytes: int) -> tuple[int, bytes]:
    """How many bytes there are, and the first of them. A file stays where it was."""
    if isinstance(data, bytes | memoryview):
        return len(data), bytes(data[:num_head_bytes])
    here = data.tell()
    try:
        size = data.seek(0, os.SEEK_END)
        data.seek(0)
        return size, data.read(num_head_bytes)
    finally:
        data.seek(here)


def is_text(head: bytes) -> bool:
    """True for what a playlist or a session description looks like."""
    return bool(head) and all(byte >= 32 or byte in b"\t\r\n" for byte in head)


def _target(offset: int, whence: int, *, position: int, num_bytes: int) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: position, os.SEEK_END: num_bytes}.get(whence)
    if start is None or start + offset < 0:
        raise ValueError(f"cannot seek to {offset} with whence {whence}")
    return start + offset
