"""What a sandbox and its child say to each other: fixed-size binary messages over a SOCK_SEQPACKET pair.

Nothing that the child sends is trusted: every field is checked here before it means anything, and nothing is unpickled.
::

    parent -> child   one JSON object (ViewConfig, Limits and, for training clips, CropConfig), once
    child  -> parent  "ready": what the kernel enforces on it from now on
    parent -> child   request n: the video lies in the input memory, num_bytes long; which part of it, and a seed
    child  -> parent  reply n: a status, and either what is known about the video or a message

With ``span="stream"`` reply n holds the first chunk of the video, and further ones are asked for::

    parent -> child   request n + 1, "next": of the same video
    child  -> parent  reply n + 1: a chunk of fewer frames than the view config says is the last

A large video may come in pages: then the input memory is a window of ``WINDOW_PAGES`` slots, and before reply n come::

    child  -> parent  "bring": so many pages of the video, from one of them on, into the slots from one of them on
    parent -> child   "brought": they are there

or in place of reply n "whole": request the video once more, with all of it in the input memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from dataclasses import dataclass, field

from vidray.sandbox.confinement import Confinement
from vidray.types import WHOLE_FILE, Limits, Status, TimeRange, VideoInfo, ViewConfig
from vidray.video.byte_sources import WINDOW_PAGES
from vidray.video.random_crops import CropConfig

MAX_CONFIG_BYTES = 65536
MAX_MESSAGE_BYTES = 1000
"""A longer error text is cut: it ends up in one row of the output."""

_REQUEST = struct.Struct("<4sIQIQ2d")
"""magic, request id, bytes of the video and of a page, seed; start and end in seconds (NaN: the file's end)"""
_REPLY = struct.Struct(f"<4sIB3x5I3d2I3q32sH{MAX_MESSAGE_BYTES}s")
"""magic, request id, status code; shape V, T, H, W, C; duration, fps, pixel's aspect ratio; width, height;
frames expected, decoded, jumps in time; codec; bytes of the message, message"""
_READY = struct.Struct("<4sBHHB")
"""magic, version of Landlock, its error; error of the filter of system calls; flags"""

_BRING = struct.Struct("<4s4I")
"""magic, request id; first page, how many, first slot"""
_WORD = struct.Struct("<4sI")
"""magic, request id"""

REQUEST_BYTES = _REQUEST.size
REPLY_BYTES = _REPLY.size

_REQUEST_MAGIC = b"vrQ3"
_BRING_MAGIC = b"vrB1"
_BROUGHT_MAGIC = b"vrH1"
_WHOLE_MAGIC = b"vrW1"
_NEXT_MAGIC = b"vrN1"
_REPLY_MAGIC = b"vrA2"
_READY_MAGIC = b"vrC1"
_HAS_NETWORK_NAMESPACE, _HAS_FIXED_LIMITS = 1, 2
_MAX_ERROR = 4095
"""What Linux numbers errors with, at most."""
_STATUSES = (
    Status.OK,
    Status.TOO_LARGE,
    Status.UNSUPPORTED,
    Status.NO_VIDEO,
    Status.CORRUPT,
    Status.DECODE_TIMEOUT,
    Status.DECODER_CRASHED,
    Status.OUT_OF_MEMORY,
)
"""Status codes by position. A child cannot claim any other: whether an object exists is not its to say."""
_UNKNOWN = -1
_MAX_COUNT = 2**53
_CODEC = re.compile(r"[!-~]{1,32}")


class WireError(Exception):
    """A message that an honest peer would not have sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """How the child says that one video ended."""

    request_id: int
    """Which request it answers."""
    status: Status
    shape: tuple[int, ...] = (0, 0, 0, 0, 0)
    """(V, T, H, W, C) of the views, or the chunk, in the output memory; zeros unless status is ok."""
    info: VideoInfo = field(default_factory=VideoInfo)
    """What is known about the video, without ``decode_seconds``: the parent's own clock is the one that counts."""
    message: str = ""
    """Why there are no views; empty if status is ok."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """How the parent asks for the views, or the training clip, of one video."""

    request_id: int
    num_bytes: int = 0
    """Length of the video."""
    page_bytes: int = 0
    """It comes in pages of so many bytes; 0: all of it lies in the input memory."""
    seed: int = 0
    """Decides what is random in a training clip; 0 to 2^64 - 1."""
    time_range: TimeRange = WHOLE_FILE
    """What of the file counts as the video."""
    is_next: bool = False
    """True: the next chunk of the stream that the last request was about; the other fields mean nothing."""


def pack_config(*, view: ViewConfig, limits: Limits, crop: CropConfig | None = None) -> bytes:
    """The first message to a child. With ``crop`` it makes training clips, without it views."""
    values = {
        "view": view.to_dict(),
        "limits": dataclasses.asdict(limits),
        "crop": None if crop is None else dataclasses.asdict(crop),
    }
    return json.dumps(values).encode()


def unpack_config(message: bytes) -> tuple[ViewConfig, Limits, CropConfig | None]:
    """The inverse of `pack_config`."""
    values = json.loads(message)
    crop = values["crop"] and CropConfig.from_dict(values["crop"])
    return ViewConfig.from_dict(values["view"]), Limits(**values["limits"]), crop


def pack_ready(confinement: Confinement) -> bytes:
    """The first message of a child."""
    flags = _HAS_NETWORK_NAMESPACE * confinement.has_network_namespace
    flags |= _HAS_FIXED_LIMITS * confinement.has_fixed_limits
    errors = confinement.landlock_error, confinement.filter_error
    return _READY.pack(_READY_MAGIC, confinement.landlock_version, *errors, flags)


def unpack_ready(message: bytes) -> Confinement:
    """The inverse of `pack_ready`, every field checked. Raises WireError.

    It is the child's word, given before it saw the first byte of a video.
    """
    if len(message) != _READY.size:
        raise WireError(f'"ready" has {_READY.size} bytes, got {len(message)}')
    magic, version, *errors, flags = _READY.unpack(message)
    if magic != _READY_MAGIC:
        raise WireError(f'"ready" starts with {_READY_MAGIC!r}, got {magic!r}')
    if max(errors) > _MAX_ERROR:
        raise WireError(f"errors are numbered 0 to {_MAX_ERROR}, got {max(errors)}")
    if flags & ~(_HAS_NETWORK_NAMESPACE | _HAS_FIXED_LIMITS):
        raise WireError(f"flags are 0 to {_HAS_NETWORK_NAMESPACE | _HAS_FIXED_LIMITS}, got {flags}")
    try:
        return Confinement(
            landlock_version=version,
            landlock_error=errors[0],
            filter_error=errors[1],
            has_network_namespace=bool(flags & _HAS_NETWORK_NAMESPACE),
            has_fixed_limits=bool(flags & _HAS_FIXED_LIMITS),
        )
    except ValueError as error:
        raise WireError(str(error)) from None


def pack_request(request: Request) -> bytes:
    """A message that asks for what is in the input memory."""
    start, end = request.time_range.start_seconds, request.time_range.end_seconds
    sizes = request.num_bytes, request.page_bytes
    numbers = request.request_id, *sizes, request.seed, start, math.nan if end is None else end
    return _REQUEST.pack(_NEXT_MAGIC if request.is_next else _REQUEST_MAGIC, *numbers)


def unpack_request(message: bytes) -> Request:
    """The inverse of `pack_request`. Raises WireError."""
    if len(message) != _REQUEST.size:
        raise WireError(f"a request has {_REQUEST.size} bytes, got {len(message)}")
    magic, request_id, num_bytes, page_bytes, seed, start, end = _REQUEST.unpack(message)
    if magic not in (_REQUEST_MAGIC, _NEXT_MAGIC):
        raise WireError(f"a request starts with {_REQUEST_MAGIC!r} or {_NEXT_MAGIC!r}, got {magic!r}")
    time_range = TimeRange(start_seconds=start, end_seconds=None if math.isnan(end) else end)
    return Request(
        request_id=request_id,
        num_bytes=num_bytes,
        page_bytes=page_bytes,
        seed=seed,
        time_range=time_range,
        is_next=magic == _NEXT_MAGIC,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bring:
    """How the child asks for pages of the video that it decodes."""

    request_id: int
    """Which request it works on."""
    page: int
    """The first one."""
    count: int
    slot: int
    """Where the first one goes in the input memory; the others follow."""


def pack_bring(bring: Bring) -> bytes:
    """A message that asks for pages."""
    return _BRING.pack(_BRING_MAGIC, bring.request_id, bring.page, bring.count, bring.slot)


def unpack_bring(message: bytes, *, request_id: int, num_pages: int) -> Bring | None:
    """The inverse of `pack_bring`, every field checked; None for another kind of message. Raises WireError.

    Args:
        request_id: the request that the child should work on.
        num_pages: of the video.
    """
    if message[:4] != _BRING_MAGIC:
        return None
    if len(message) != _BRING.size:
        raise WireError(f'"bring" has {_BRING.size} bytes, got {len(message)}')
    _, got_id, page, count, slot = _BRING.unpack(message)
    if got_id != request_id:
        raise WireError(f"expected pages for request {request_id} to be asked for, got {got_id}")
    if not 1 <= count <= num_pages - page:
        raise WireError(f"the video has {num_pages} pages, {count} were asked for from page {page} on")
    if slot + count > WINDOW_PAGES:
        raise WireError(f"there are {WINDOW_PAGES} slots, {count} were asked for from slot {slot} on")
    return Bring(request_id=got_id, page=page, count=count, slot=slot)


def pack_brought(request_id: int) -> bytes:
    """The answer to "bring"."""
    return _WORD.pack(_BROUGHT_MAGIC, request_id)


def pack_whole(request_id: int) -> bytes:
    """A child's word that it cannot do with pages."""
    return _WORD.pack(_WHOLE_MAGIC, request_id)


def pack_reply(reply: Reply) -> bytes:
    """A reply of `REPLY_BYTES` bytes; its message is cut where it is too long."""
    info, message = reply.info, reply.message.encode(errors="replace")[:MAX_MESSAGE_BYTES]
    status = reply.status if reply.status in _STATUSES else Status.DECODER_CRASHED
    return _REPLY.pack(
        _REPLY_MAGIC,
        reply.request_id,
        _STATUSES.index(status),
        *reply.shape,
        math.nan if info.duration_seconds is None else info.duration_seconds,
        math.nan if info.fps is None else info.fps,
        math.nan if info.sample_aspect_ratio is None else info.sample_aspect_ratio,
        info.width or 0,
        info.height or 0,
        _UNKNOWN if info.num_frames_expected is None else info.num_frames_expected,
        _UNKNOWN if info.num_frames_decoded is None else info.num_frames_decoded,
        _UNKNOWN if info.num_time_jumps is None else info.num_time_jumps,
        (info.codec or "").encode("ascii", errors="replace"),
        len(message),
        message,
    )


def unpack_reply(message: bytes, *, request_id: int) -> Reply:
    """The reply to ``request_id``, every field checked. Raises WireError."""
    if len(message) != _REPLY.size:
        raise WireError(f"a reply has {_REPLY.size} bytes, got {len(message)}")
    magic, got_id, code, *numbers, codec, num_message_bytes, text = _REPLY.unpack(message)
    if magic != _REPLY_MAGIC:
        raise WireError(f"a reply starts with {_REPLY_MAGIC!r}, got {magic!r}")
    if got_id != request_id:
        raise WireError(f"expected the reply to request {request_id}, got one to {got_id}")
    if code >= len(_STATUSES):
        raise WireError(f"status codes are 0 to {len(_STATUSES) - 1}, got {code}")
    if num_message_bytes > MAX_MESSAGE_BYTES:
        raise WireError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, got {num_message_bytes}")
    return Reply(
        request_id=got_id,
        status=_STATUSES[code],
        shape=tuple(numbers[:5]),
        info=_info(numbers[5:], codec=codec),
        message=printable(text[:num_message_bytes]),
    )


def printable(text: bytes) -> str:
    """``text`` as one line that can be stored and shown anywhere."""
    decoded = text.decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() else " " for c in decoded).strip()


def _info(numbers: list, *, codec: bytes) -> VideoInfo:
    duration_seconds, fps, aspect_ratio, width, height, num_expected, num_decoded, num_jumps = numbers
    name = codec.rstrip(b"\0").decode("ascii", errors="replace")
    if name and not _CODEC.fullmatch(name):
        raise WireError(f"a codec's name is printable ASCII, got {name!r}")
    return VideoInfo(
        duration_seconds=_measure(duration_seconds, name="duration_seconds"),
        fps=_measure(fps, name="fps"),
        sample_aspect_ratio=_measure(aspect_ratio, name="sample_aspect_ratio"),
        width=_count(width, name="width") or None,
        height=_count(height, name="height") or None,
        num_frames_expected=_count(num_expected, name="num_frames_expected"),
        num_frames_decoded=_count(num_decoded, name="num_frames_decoded"),
        num_time_jumps=_count(num_jumps, name="num_time_jumps"),
        codec=name or None,
    )


def _measure(value: float, *, name: str) -> float | None:
    if math.isnan(value):
        return None
    if not 0 <= value < math.inf:
        raise WireError(f"{name} must be finite and at least 0, got {value}")
    return value


def _count(value: int, *, name: str) -> int | None:
    if value == _UNKNOWN:
        return None
    if not 0 <= value <= _MAX_COUNT:
        raise WireError(f"{name} must be 0 to {_MAX_COUNT}, got {value}")
    return value
