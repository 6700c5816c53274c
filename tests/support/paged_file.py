"""A file in pages as a sandbox's child has it, without a sandbox: the pages come from bytes in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vidray.video.byte_sources import PagedFile


@contextlib.contextmanager
def paged(data: bytes, *, page_bytes: int, max_pages: int | None = None) -> Iterator[tuple[PagedFile, list[int]]]:
    """Yields the file, and the pages that were brought so far, in order."""
    window, brought = os.memfd_create("window"), list[int]()

    def bring(page: int, count: int, slot: int) -> None:
        brought.extend(range(page, page + count))
        os.pwrite(window, data[page * page_bytes : (page + count) * page_bytes], slot * page_bytes)

    try:
        yield (
            PagedFile(window, num_bytes=len(data), page_bytes=page_bytes, bring=bring, max_pages=max_pages),
            brought,
        )
    finally:
        os.close(window)
