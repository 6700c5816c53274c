"""Large objects of which parts are fetched, when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from vidray.errors import VideoError
from vidray.storage.fetch import RangesRefusedError, fetch, fetch_range
from vidray.types import Limits, Status, VideoRef

PAGE_BYTES = 1 << 20
"""What is fetched at once, at least. A store takes about as long to begin with an answer as to send a megabyte."""


def open_ranged(ref: VideoRef, *, limits: Limits) -> RangedObject | bytes:
    """An object to be fetched in parts; or the whole of it, where its store refuses that.

    Args:
        ref: with size and etag.

    Raises:
        VideoError: as `fetch`.
    """
    try:
        return RangedObject(ref, limits=limits)
    except RangesRefusedError:
        return fetch(ref, limits=limits)


class RangedObject:
    """One version of an object. For one thread at a time."""

    def __init__(self, ref: VideoRef, *, limits: Limits) -> None:
        """Fetches the first page.

        Args:
            ref: with size and etag.

        Raises:
            VideoError: as `fetch`.
            RangesRefusedError: only `fetch` can do it.
        """
        assert ref.size_bytes is not None
        self._ref, self._limits = ref, limits
        self.size_bytes, self.page_bytes = ref.size_bytes, PAGE_BYTES
        self.bytes_fetched = 0
        self.fetch_seconds = 0.0
        """How long the store was waited for."""
        self._head = b""
        self._head = self._fetch(0, min(PAGE_BYTES, ref.size_bytes))

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, which must lie within the object.

        Raises:
            VideoError: as `fetch`.
        """
        if stop <= len(self._head):
            return self._head[start:stop]
        try:
            return self._fetch(start, stop)
        except RangesRefusedError as error:
            raise VideoError(Status.FETCH_FAILED, str(error)) from error

    def read_all(self) -> bytes:
        """The whole object. Raises VideoError, as `fetch`."""
        return self._counted(partial(fetch, self._ref, limits=self._limits))

    def _fetch(self, start: int, stop: int) -> bytes:
        return self._counted(partial(fetch_range, self._ref, start=start, stop=stop, limits=self._limits))

    def _counted(self, call: Callable[[], bytes]) -> bytes:
        started = time.perf_counter()
        try:
            data = call()
        finally:
            self.fetch_seconds += time.perf_counter() - started
        self.bytes_fetched += len(data)
        return data
