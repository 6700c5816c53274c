"""The disposable process that decodes videos for a `vidray.sandbox.sandbox.Sandbox`.

It gives up what it does not need (``confinement``) before it sees the first byte of a video, and it never lives longer
than its parent: while idle it waits on the control socket, which ends when the parent does; while decoding its own
timer runs. What the kernel enforces holds even if the decoder is tricked into running foreign code; the timer, which
is the parent's second line only, does not.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import mmap
import os
import signal
import socket
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vidray.errors import VideoError
from vidray.sandbox.confinement import confine
from vidray.sandbox.protocol import (
    MAX_CONFIG_BYTES,
    REQUEST_BYTES,
    Bring,
    Reply,
    Request,
    WireError,
    pack_bring,
    pack_brought,
    pack_ready,
    pack_reply,
    pack_whole,
    unpack_config,
    unpack_request,
)
from vidray.types import Limits, Status, TimeRange, VideoInfo, ViewConfig
from vidray.video.byte_sources import DescriptorFile, NeedsWholeFileError, PagedFile
from vidray.video.random_crops import ClipDraw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMER_GRACE_SECONDS = 1.0
"""The parent's deadline comes first, because it alone can say what happened; the child's own follows."""


class Decode(Protocol):
    """What `vidray.video.views.decode_views` is."""

    def __call__(
        self,
        data: bytes | PagedFile,
        *,
        view: ViewConfig,
        limits: Limits,
        out: np.ndarray,
        time_range: TimeRange,
        draw: ClipDraw | None,
    ) -> tuple[np.ndarray, VideoInfo]: ...


class Stream(Protocol):
    """What `vidray.video.views.stream_views` is."""

    def __call__(
        self, file: DescriptorFile, *, view: ViewConfig, limits: Limits, out: np.ndarray, time_range: TimeRange
    ) -> Iterator[tuple[int, VideoInfo]]: ...


def main(
    *, control_fd: int, input_fd: int, output_fd: int, decode: Decode | None = None, stream: Stream | None = None
) -> None:
    """Answer requests until the parent closes its end of the control socket, or dies.

    ``decode`` writes the views into ``out``, ``stream`` chunk after chunk; None: those of `vidray.video.views`.
    """
    _reset_signals()
    control = socket.socket(fileno=control_fd)
    view, limits, crop = unpack_config(control.recv(MAX_CONFIG_BYTES))
    if decode is None or stream is None:
        from vidray.video.views import (  # here, so that importing this module brings no FFmpeg
            decode_views,
            stream_views,
        )

        decode, stream = decode or decode_views, stream or stream_views
        if view.decoder == "pytorchvideo":
            from vidray.video import pytorchvideo_clips

            pytorchvideo_clips.load()  # no module can be imported once this process is closed
    views_VTHWC = np.frombuffer(mmap.mmap(output_fd, view.num_bytes), np.uint8).reshape(view.views_shape)
    set_memory_limit, confinement = confine(limits=limits)
    control.send(pack_ready(confinement))
    streams = _Streams(functools.partial(stream, view=view, limits=limits, out=views_VTHWC), input_fd)
    while message := control.recv(REQUEST_BYTES + 1):
        request = unpack_request(message)
        signal.setitimer(signal.ITIMER_REAL, limits.decode_timeout_seconds + TIMER_GRACE_SECONDS)
        if view.is_chunked:
            make = functools.partial(streams.answer, request, view=view)
        else:
            draw = ClipDraw(crop=crop, seed=request.seed) if crop else None
            views = functools.partial(
                decode, view=view, limits=limits, out=views_VTHWC, time_range=request.time_range, draw=draw
            )
            read: Callable[[], bytes | PagedFile]
            if request.page_bytes:
                read = functools.partial(_paged_input, input_fd, request, control)
            else:
                read = functools.partial(_read_input, input_fd, request.num_bytes, set_memory_limit)
            make = functools.partial(_decode_into, views_VTHWC, views, read)
        answer = _answer(make, request_id=request.request_id, limits=limits)
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: the next recv says so
            control.send(answer)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reset_signals() -> None:
    """What the parent blocks or ignores is inherited, and a timer whose signal is ignored ends nothing."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for signum in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)


def _read_input(input_fd: int, num_bytes: int, set_memory_limit: Callable[[int], None]) -> bytes:
    """A copy, because ``io.BytesIO`` shares bytes but copies everything else, each time that a file is opened anew."""
    if num_bytes == 0:  # nothing cannot be mapped
        return b""
    set_memory_limit(2 * num_bytes)
    with mmap.mmap(input_fd, num_bytes, prot=mmap.PROT_READ) as mapped:
        data = mapped.read()
    set_memory_limit(num_bytes)
    return data


def _paged_input(input_fd: int, request: Request, control: socket.socket) -> PagedFile:
    def bring(page: int, count: int, slot: int) -> None:
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # a store that is slow is not the video's fault
        control.send(pack_bring(Bring(request_id=request.request_id, page=page, count=count, slot=slot)))
        if control.recv(REQUEST_BYTES) != pack_brought(request.request_id):
            os._exit(0)  # the parent is gone; FFmpeg, which called this, would go on
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))

    return PagedFile(input_fd, num_bytes=request.num_bytes, page_bytes=request.page_bytes, bring=bring)


def _decode_into(
    out: np.ndarray,
    decode: Callable[[bytes | PagedFile], tuple[np.ndarray, VideoInfo]],
    read: Callable[[], bytes | PagedFile],
) -> tuple[tuple[int, ...], VideoInfo]:
    data = read()
    try:
        views_VTHWC, info = decode(data)
    finally:
        if isinstance(data, PagedFile) and data.has_given_up:
            raise NeedsWholeFileError  # whatever came of what was read of it
    if views_VTHWC is not out:
        np.copyto(out, views_VTHWC)
    return out.shape, info


class _Streams:
    """The video that is being streamed, if one is. It is read from the input memory as it goes: no copy of it."""

    def __init__(self, stream: Callable[..., Iterator[tuple[int, VideoInfo]]], input_fd: int) -> None:
        self._stream, self._input_fd = stream, input_fd
        self._chunks: Iterator[tuple[int, VideoInfo]] | None = None

    def answer(self, request: Request, *, view: ViewConfig) -> tuple[tuple[int, ...], VideoInfo]:
        """The shape of the chunk that is in the output memory now. Raises what ended the stream."""
        if not request.is_next:
            file = DescriptorFile(self._input_fd, request.num_bytes)
            self._chunks = self._stream(file, time_range=request.time_range)
        if self._chunks is None:
            raise WireError("there is no stream to go on with")
        num_frames, info = next(self._chunks)
        return (1, num_frames, *view.views_shape[2:]), info


def _answer(make: Callable[[], tuple[tuple[int, ...], VideoInfo]], *, request_id: int, limits: Limits) -> bytes:
    """The message that answers a request."""
    try:
        shape, info = make()
        return pack_reply(Reply(request_id=request_id, status=Status.OK, shape=shape, info=info))
    except NeedsWholeFileError:
        return pack_whole(request_id)
    except VideoError as error:
        status, message = error.status, error.message
    except MemoryError:
        status, message = Status.OUT_OF_MEMORY, f"decoding needs more than {limits.decode_memory_bytes} bytes of memory"
    except Exception as error:
        is_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
        status = Status.OUT_OF_MEMORY if is_memory else Status.DECODER_CRASHED
        message = f"the decoder raised {type(error).__name__}: {error}"
    gc.collect()  # frames of a failed decode would count against the next video's memory
    return pack_reply(Reply(request_id=request_id, status=status, message=message))
