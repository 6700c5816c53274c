"""Members of a tar file that lie side by side, fetched together: a store takes as long to begin with an answer as to
send many small ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vidray.errors import VideoError
from vidray.storage.fetch import fetch
from vidray.types import Limits, VideoRef

MAX_BYTES = 1 << 22
"""Of members that are fetched together."""
_MAX_GAP_BYTES = 1 << 14
"""Between two of them: headers, and what lies beside a video."""


def group_neighbours(refs: Sequence[VideoRef], *, max_bytes: int = MAX_BYTES) -> list[list[VideoRef]]:
    """The objects in their order, those together that `fetch_together` has with one request."""
    groups: list[list[VideoRef]] = []
    for ref in refs:
        if groups and _joins(groups[-1], ref, max_bytes):
            groups[-1].append(ref)
        else:
            groups.append([ref])
    return groups


def fetch_together(refs: Sequence[VideoRef], *, limits: Limits) -> list[bytes | VideoError]:
    """Each object's bytes, or why it cannot be had, as `fetch`.

    Args:
        refs: a group of `group_neighbours`.
    """
    try:
        data = memoryview(fetch(_span(refs), limits=limits))
    except VideoError as error:
        if error.is_outage:  # it was waited for long enough
            return [error] * len(refs)
        return [_fetch_alone(ref, limits) for ref in refs]
    start = _offset(refs[0])
    return [bytes(data[_offset(ref) - start : _end(ref) - start]) for ref in refs]


def _fetch_alone(ref: VideoRef, limits: Limits) -> bytes | VideoError:
    try:
        return fetch(ref, limits=limits)
    except VideoError as error:
        return error


def _joins(group: Sequence[VideoRef], ref: VideoRef, max_bytes: int) -> bool:
    first, last = group[0], group[-1]
    if any(one.tar_member is None or one.tar_member.status is not None for one in (last, ref)):
        return False
    same = (_shard(first), first.etag) == (_shard(ref), ref.etag)
    return same and 0 <= _offset(ref) - _end(last) <= _MAX_GAP_BYTES and _end(ref) - _offset(first) <= max_bytes


def _span(refs: Sequence[VideoRef]) -> VideoRef:
    """From the first of them to the last, as one member."""
    return dataclasses.replace(refs[0], size_bytes=_end(refs[-1]) - _offset(refs[0]))


def _shard(ref: VideoRef) -> str | None:
    return ref.tar_member.shard if ref.tar_member else None


def _offset(ref: VideoRef) -> int:
    assert ref.tar_member is not None
    return ref.tar_member.offset


def _end(ref: VideoRef) -> int:
    return _offset(ref) + (ref.size_bytes or 0)
