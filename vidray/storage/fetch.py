"""Fetches one object, or a part of it, in the version that was listed, or raises a ``VideoError`` that says why not.

Safe to call from many threads. No more than ``Limits.max_object_bytes`` are held for one object.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from functools import partial
from typing import Any, NoReturn

from fsspec.asyn import sync

from vidray.errors import UsageError, VideoError
from vidray.storage.failures import Failure, classify, describe, is_outage
from vidray.storage.location import Location, locate, split_bucket
from vidray.storage.redaction import is_url
from vidray.storage.retry import CONNECT_TIMEOUT_SECONDS, SILENCE_TIMEOUT_SECONDS, Deadline, with_retries
from vidray.storage.versions import etag_of, local_etag, unquote_etag
from vidray.types import Limits, Status, VideoRef

_CHUNK_BYTES = 1 << 20
_QUERY = re.compile(r"\?[^\s'\"]+")


def fetch(ref: VideoRef, *, limits: Limits) -> bytes:
    """The whole object, if it is still the version that ``ref`` names.

    Without an etag in ``ref`` any version will do that has the size in ``ref``, if there is one.

    Raises:
        VideoError: NOT_FOUND, ACCESS_DENIED, TOO_LARGE (known before it is read where the store tells the size),
            CHANGED (other than listed, or replaced while it was read), UNSUPPORTED (not a regular file), FETCH_FAILED;
            and what the listing of a tar file found out about its member.
    """
    if ref.tar_member is not None:
        return _fetch_member(ref, limits)
    data = _fetch(ref, limits, None)
    if ref.etag is None and ref.size_bytes not in (None, len(data)):
        _raise_changed(f"listed with {ref.size_bytes} bytes, has {len(data)} now")
    return data


class RangesRefusedError(Exception):
    """The store does not give the part of an object that was asked for: some web servers always give all of it."""


def fetch_range(ref: VideoRef, *, start: int, stop: int, limits: Limits) -> bytes:
    """Bytes ``start`` to ``stop`` of the object, if it is still the version that ``ref`` names: with etag and size.

    Raises:
        VideoError: as `fetch`.
        RangesRefusedError: only `fetch` can do it.
    """
    if ref.etag is None or ref.size_bytes is None or not 0 <= start < stop <= ref.size_bytes:
        raise ValueError(f"bytes {start} to {stop} of {ref.size_bytes}, version {ref.etag}")
    return _fetch(ref, limits, range(start, stop))


def _fetch_member(ref: VideoRef, limits: Limits) -> bytes:
    try:
        return _fetch(ref, limits, range(ref.size_bytes or 0))
    except RangesRefusedError as error:
        raise VideoError(Status.FETCH_FAILED, str(error)) from error


def _fetch(ref: VideoRef, limits: Limits, part: range | None) -> bytes:
    uri, member = ref.uri, ref.tar_member
    if member is not None and part is not None:
        if member.status is not None:
            raise VideoError(Status(member.status), member.error or "")
        if not part:
            return b""
        uri, part = member.shard, range(member.offset + part.start, member.offset + part.stop)
    if ref.size_bytes is not None:
        _check_size(ref.size_bytes, limits)
    try:
        place = locate(ref.path.decode() if ref.path and is_url(ref.uri) else uri)
        deadline = Deadline(limits.fetch_deadline_seconds)
        call = partial(_read, place, ref, limits, deadline, part)
        return with_retries(call, what=ref.uri, deadline=deadline, should_retry=_should_retry)
    except (VideoError, RangesRefusedError):
        raise
    except Exception as error:
        raise _as_video_error(error, ref) from error


def _should_retry(error: BaseException) -> bool:
    return not isinstance(error, VideoError | UsageError | RangesRefusedError) and is_outage(error)


def _as_video_error(error: Exception, ref: VideoRef) -> VideoError:
    failure = classify(error)
    status = _STATUSES.get(failure, Status.FETCH_FAILED) if failure else Status.FETCH_FAILED
    if isinstance(error, IsADirectoryError):
        status = Status.UNSUPPORTED
    message = describe(error)
    if ref.path and is_url(ref.uri):  # workers do not know --secret-parameters
        message = _QUERY.sub("?...", message)
    return VideoError(status, message, failure is Failure.OUTAGE)


_STATUSES = {
    Failure.NOT_FOUND: Status.NOT_FOUND,
    Failure.ACCESS_DENIED: Status.ACCESS_DENIED,
    Failure.PRECONDITION: Status.CHANGED,
}


def _read(place: Location, ref: VideoRef, limits: Limits, deadline: Deadline, part: range | None) -> bytes:
    """``part``: what of the object; None: all of it."""
    match place.kind:
        case "local":
            data = _read_local(ref.path or os.fsencode(place.path), ref, limits, part)
        case "s3":
            data = sync(place.fs.loop, _read_s3, place, ref, limits, deadline, part)
        case "azure":
            data = sync(place.fs.loop, _read_azure, place, ref, limits, deadline, part)
        case "http":
            data = sync(place.fs.loop, _read_http, place, ref, limits, deadline, part)
        case _:
            data = _read_any(place, ref, limits, part)
    if part is not None and len(data) != len(part):
        raise ConnectionError(f"{len(data)} bytes came of {len(part)} that were asked for")
    return data


def _range_header(part: range) -> str:
    return f"bytes={part.start}-{part.stop - 1}"


def _check_content_range(told: str | None, part: range, ref: VideoRef) -> None:
    size = ref.tar_member.shard_bytes if ref.tar_member else ref.size_bytes
    if told != f"bytes {part.start}-{part.stop - 1}/{size}":
        raise RangesRefusedError(f"{_range_header(part)} of {size} was asked for, and came as {told!r}")


def _check_size(size_bytes: int, limits: Limits) -> None:
    if size_bytes > limits.max_object_bytes:
        raise VideoError(Status.TOO_LARGE, f"{size_bytes} bytes, allowed are {limits.max_object_bytes}")


def _check_etag(ref: VideoRef, etag: str | None) -> None:
    if ref.etag is not None and etag != ref.etag:
        _raise_changed(f"listed as {ref.etag}, is {etag} now")


def _raise_changed(how: str) -> NoReturn:
    raise VideoError(Status.CHANGED, f"the object changed after it was listed: {how}")


def _read_local(path: bytes, ref: VideoRef, limits: Limits, part: range | None) -> bytes:
    descriptor = _open_regular(path)
    with open(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        _check_regular(before)
        _check_etag(ref, local_etag(before))
        _check_size(len(part) if part else before.st_size, limits)
        file.seek(part.start if part else 0)
        data = file.read(len(part) if part else before.st_size + 1)
        if (part is None and len(data) != before.st_size) or local_etag(os.fstat(descriptor)) != local_etag(before):
            _raise_changed("it was written to while it was read")
    return data


def _open_regular(path: bytes) -> int:
    """A descriptor of what may be a regular file. Opening a pipe or a device must neither wait nor do anything."""
    _check_regular(os.stat(path))
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise VideoError(Status.UNSUPPORTED, "not a regular file") from error
        raise


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(Status.UNSUPPORTED, f"not a regular file: mode {stat.filemode(status.st_mode)}")


class _SilenceGuard:
    """Breaks off a download when no bytes come for too long: a silent server must not hold it beyond the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._seconds = min(CONNECT_TIMEOUT_SECONDS + SILENCE_TIMEOUT_SECONDS, deadline.remaining_seconds)
        self._timeout = asyncio.timeout(self._seconds)

    async def __aenter__(self) -> _SilenceGuard:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError as error:
            raise ConnectionError(f"the server sent nothing for {self._seconds:.3g} seconds") from error

    def note_bytes(self) -> None:
        """Some bytes came: wait anew for the next ones."""
        self._deadline.note_bytes()
        self._seconds = min(SILENCE_TIMEOUT_SECONDS, self._deadline.seconds)
        self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)


async def _read_s3(place: Location, ref: VideoRef, limits: Limits, deadline: Deadline, part: range | None) -> bytes:
    bucket, key = split_bucket(place.path)
    condition = {} if ref.etag is None else {"IfMatch": f'"{ref.etag}"'}
    if part:
        condition["Range"] = _range_header(part)
    async with _SilenceGuard(deadline) as guard:
        reply = await place.fs._call_s3("get_object", Bucket=bucket, Key=key, **condition)
        async with reply["Body"] as body:
            _check_etag(ref, unquote_etag(reply["ETag"]))  # for stores that ignore If-Match
            if part:
                _check_content_range(reply.get("ContentRange"), part, ref)
            _check_size(reply["ContentLength"], limits)
            chunks = []
            while chunk := await body.read(_CHUNK_BYTES):
                chunks.append(chunk)
                guard.note_bytes()
            return b"".join(chunks)


async def _read_azure(place: Location, ref: VideoRef, limits: Limits, deadline: Deadline, part: range | None) -> bytes:
    from azure.core import MatchConditions

    container, key = split_bucket(place.path)
    condition = {} if ref.etag is None else {"etag": f'"{ref.etag}"', "match_condition": MatchConditions.IfNotModified}
    if part:
        condition |= {"offset": part.start, "length": len(part)}
    async with place.fs.service_client.get_blob_client(container=container, blob=key) as blob:
        try:
            silence = max(0.1, min(SILENCE_TIMEOUT_SECONDS, deadline.remaining_seconds))
            stream = await blob.download_blob(**condition, read_timeout=silence)
        except Exception as error:
            if classify(error) is Failure.PRECONDITION and not await blob.exists():
                raise FileNotFoundError(place.uri) from None
            raise
        deadline.note_bytes()
        _check_size(stream.size, limits)
        return await stream.readall()


async def _read_http(place: Location, ref: VideoRef, limits: Limits, deadline: Deadline, part: range | None) -> bytes:
    session = await place.fs.set_session()
    url, headers = place.fs.encode_url(place.path), {"Accept-Encoding": "identity"}
    if part:
        headers["Range"] = _range_header(part)
    async with (
        _SilenceGuard(deadline) as guard,
        session.get(url, headers=headers, **_http_options(place.fs)) as reply,
    ):
        if part and reply.status == 416:
            _raise_changed(f"{_range_header(part)} lies beyond its end now")
        reply.raise_for_status()
        _check_etag(ref, etag_of(reply.headers))
        if part:
            _check_content_range(reply.headers.get("Content-Range"), part, ref)
        _check_size(reply.content_length or 0, limits)
        data = bytearray()
        async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            guard.note_bytes()
            _check_size(len(data), limits)
        return bytes(data)


def _http_options(fs: Any) -> dict[str, Any]:
    return {name: value for name, value in fs.kwargs.items() if name != "headers"}


def _read_any(place: Location, ref: VideoRef, limits: Limits, part: range | None) -> bytes:
    """For file systems without a conditional read: the version is compared before and after."""
    place.fs.invalidate_cache()
    before = place.fs.info(place.path)
    if before["type"] != "file":
        raise VideoError(Status.UNSUPPORTED, f"not a file but a {before['type']}")
    _check_etag(ref, etag_of(before))
    if before.get("size") is None:
        data = _read_bounded(place, limits)
    else:
        _check_size(len(part) if part else before["size"], limits)
        data = place.fs.cat_file(place.path, *((part.start, part.stop) if part else ()))
    is_torn = part is None and before.get("size") not in (None, len(data))
    if is_torn or etag_of(place.fs.info(place.path)) != etag_of(before):
        _raise_changed("it was replaced while it was read")
    return data


def _read_bounded(place: Location, limits: Limits) -> bytes:
    with place.fs.open(place.path, "rb") as file:
        data = file.read(limits.max_object_bytes + 1)
    _check_size(len(data), limits)
    return data
