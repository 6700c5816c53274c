"""The bytes of a video, as something to read from that has no name: FFmpeg would open other files by it."""

from __future__ import annotations

import io
import os
from typing import Protocol


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
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}.get(whence)
        if start is None or start + offset < 0:
            raise ValueError(f"cannot seek to {offset} with whence {whence}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position


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
