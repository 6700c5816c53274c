"""Brings a child the pages of a video that it asks for, as far as they are the video's and no more than it has."""

from __future__ import annotations

import os
import time
from typing import Protocol

from vidray.sandbox.protocol import WireError, unpack_bring
from vidray.video.byte_sources import count_pages


class RangeSource(Protocol):
    """A large video of which parts can be had, such as `vidray.storage.ranges.RangedObject`."""

    size_bytes: int
    page_bytes: int
    """What is asked for at once, at least."""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``. Raises VideoError."""

    def read_all(self) -> bytes:
        """The whole video. Raises VideoError."""


class PageServer:
    """Serves one request of a child."""

    def __init__(self, source: RangeSource, *, input_fd: int) -> None:
        self._source, self._input_fd = source, input_fd
        self._num_pages = self._num_left = count_pages(source.size_bytes, source.page_bytes)
        self.seconds = 0.0
        """How long it took so far, which is not the decoder's time."""
        self.is_asked = False
        """True while the child waits for an answer."""

    def serve(self, message: bytes, *, request_id: int) -> bool:
        """Puts the pages that a message asks for into the input memory. False if it asks for none.

        Raises:
            WireError: an honest child would not have asked for that.
            VideoError: they could not be had.
        """
        bring = unpack_bring(message, request_id=request_id, num_pages=self._num_pages)
        if bring is None:
            return False
        if bring.count > self._num_left:
            raise WireError(f"more pages were asked for than the {self._num_pages} that the video has")
        self._num_left -= bring.count
        self.is_asked, started = True, time.perf_counter()
        size, page_bytes = self._source.size_bytes, self._source.page_bytes
        data = self._source.read(bring.page * page_bytes, min(size, (bring.page + bring.count) * page_bytes))
        os.pwrite(self._input_fd, data, bring.slot * page_bytes)
        self.seconds += time.perf_counter() - started
        self.is_asked = False
        return True
