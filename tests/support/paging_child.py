"""A sandbox child that asks for pages as an honest one would not, where a video begins with ``act:`` and what to do."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

import numpy as np

from vidray.sandbox import child as sandbox_child
from vidray.sandbox.protocol import Bring, pack_bring, pack_whole
from vidray.types import VideoInfo
from vidray.video.byte_sources import WINDOW_PAGES, PagedFile

_MARKER = b"act:"


def video_that(act: str, *, num_pages: int, page_bytes: int) -> bytes:
    """Bytes on which the child does what ``ACTS`` says."""
    return (_MARKER + act.encode() + b"\0").ljust(num_pages * page_bytes, b"\0")


def main(*, control_fd: int, input_fd: int, output_fd: int) -> None:
    """The real child's loop around a decode that looks for the marker first."""
    from vidray.video.views import decode_views

    num_requests = 0

    def decode(data: bytes | PagedFile, **how: object) -> tuple[np.ndarray, VideoInfo]:
        nonlocal num_requests
        num_requests += 1
        head = data[:64] if isinstance(data, bytes) else data.read(64)
        if head.startswith(_MARKER):
            act = head.removeprefix(_MARKER).partition(b"\0")[0].decode()
            for message in ACTS[act](num_requests):
                os.write(control_fd, message)
                if act != "never_reads":
                    os.read(control_fd, 64)
            os.write(2, b"hanging\n")  # tests wait for it
            time.sleep(3600)
        if not isinstance(data, bytes):
            data.seek(0)
        return decode_views(data, **how)  # type: ignore[arg-type]

    sandbox_child.main(control_fd=control_fd, input_fd=input_fd, output_fd=output_fd, decode=decode)


def _bring(request_id: int, *, page: int = 0, count: int = 1, slot: int = 0) -> bytes:
    return pack_bring(Bring(request_id=request_id, page=page, count=count, slot=slot))


ACTS: dict[str, Callable[[int], list[bytes]]] = {
    "page_that_is_not_there": lambda n: [_bring(n, page=8)],
    "page_far_away": lambda n: [_bring(n, page=2**32 - 1)],
    "pages_beyond_the_end": lambda n: [_bring(n, page=7, count=2)],
    "more_than_all": lambda n: [_bring(n, count=2**32 - 1)],
    "no_page": lambda n: [_bring(n, count=0)],
    "slot_that_is_not_there": lambda n: [_bring(n, slot=WINDOW_PAGES)],
    "slots_beyond_the_window": lambda n: [_bring(n, slot=WINDOW_PAGES - 1, count=2)],
    "wrong_request": lambda n: [_bring(n + 1)],
    "too_short": lambda n: [_bring(n)[:-1]],
    "too_long": lambda n: [_bring(n) + b"\0"],
    "signed": lambda n: [struct.pack("<4sIiII", b"vrB1", n, -1, 1, 0)],
    "again_and_again": lambda n: [_bring(n)] * 100,
    "never_reads": lambda n: [_bring(n)] * 100_000,
    "hang": lambda n: [_bring(n)],
    "whole_of_another": lambda n: [pack_whole(n + 1)],
}
"""What the child says, of a video of eight pages, to request n."""
