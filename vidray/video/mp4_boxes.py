"""Where an MP4 or QuickTime file keeps its samples, and where its index, by the headers of its outermost boxes
(ISO/IEC 14496-12, 4.2)."""

from __future__ import annotations

import os

from vidray.video.byte_sources import NeedsWholeFileError, SeekableFile

_KINDS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"udta", b"meta", b"uuid"})
"""Outermost boxes of a file with one index, ``moov``. (In a file of fragments each has its own, ``moof``.)"""
_MAX_BOXES = 64
"""Each costs a read, perhaps a request to a store."""


def media_spans(file: SeekableFile) -> list[tuple[int, int]]:
    """(start, stop) of each box that holds samples (``mdat``), without its header, in order. The index lies elsewhere.

    Raises:
        NeedsWholeFileError: it is no such file, or one that was cut off or is in fragments.
    """
    num_bytes = file.seek(0, os.SEEK_END)
    spans, kinds, at = [], set(), 0
    for _ in range(_MAX_BOXES):
        if at == num_bytes:
            break
        file.seek(at)
        header = file.read(16)
        length, kind, start = int.from_bytes(header[:4], "big"), header[4:8], at + 8
        if length == 1:
            length, start = int.from_bytes(header[8:], "big"), at + 16
        elif length == 0:
            length = num_bytes - at
        if kind not in _KINDS or not start <= at + length <= num_bytes:
            break
        if kind == b"mdat":
            spans.append((start, at + length))
        kinds.add(kind)
        at += length
    if at != num_bytes or not {b"moov", b"mdat"} <= kinds:
        raise NeedsWholeFileError("no MP4 with one index for all of it")
    return spans
