"""Decodes videos in a process that may crash, hang or eat memory without harm to the one that asks.

    with Sandbox(view=view, limits=limits) as sandbox:
        views_VTHWC, info = sandbox.decode(data)

A hostile or broken video costs at most its deadline, its memory and one child: the child is killed, the video is a
`VideoError`, and the next video gets a new child. What the child may do is in `vidray.sandbox.child`, what it may
say in `vidray.sandbox.protocol`. Linux only.

    with Sandbox(view=dataclasses.replace(view, span="stream", num_clips=1), limits=limits) as sandbox:
        for frames_THWC, info in sandbox.stream(data):

Of a large video `decode` also takes a ``RangeSource``: then only the parts are read that its clips need.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import select
import signal
import socket
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vidray.errors import RunError, VideoError
from vidray.sandbox.confinement import Confinement
from vidray.sandbox.page_server import PageServer, RangeSource
from vidray.sandbox.process import await_exit, kill, lower_priority, sealed_memory, signal_name, spawn
from vidray.sandbox.protocol import (
    REPLY_BYTES,
    Reply,
    Request,
    WireError,
    pack_brought,
    pack_config,
    pack_request,
    pack_whole,
    printable,
    unpack_ready,
    unpack_reply,
)
from vidray.types import WHOLE_FILE, Limits, Status, TimeRange, VideoInfo, ViewConfig
from vidray.video.byte_sources import NeedsWholeFileError
from vidray.video.random_crops import CropConfig
from vidray.video.sampling import most_frames, stream_chunks

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

_ENDINGS = (Status.DECODE_TIMEOUT, Status.DECODER_CRASHED, Status.OUT_OF_MEMORY)
"""Statuses after which a child is not used again."""
START_TIMEOUT_SECONDS = 60.0
"""A child starts in about 0.2 s; on a machine that is starting many things at once it may take much longer."""
_START_ATTEMPTS = 3
_EXIT_GRACE_SECONDS = 1.0
"""How long a child that hung up may take to exit by itself, so that the cause of its death can be named."""
_KEPT_INPUT_BYTES = 64 * 1024**2
"""The input memory is kept for the next video up to this size."""
_MAX_LAST_WORDS_BYTES = 300


class Sandbox:
    """A disposable decoder. One thread at a time may use one sandbox; many threads may have one each.

    Args:
        view: what to make of each video; fixes the shape of the views.
        crop: make training clips instead: a random span and a random crop of each video, both decided by a seed.
        limits: what one video may cost; deadline and memory are enforced here, the rest by the decoder.
        recycle_after: videos after which the child is replaced, so that what one leaves behind stays bounded.
        child_module: module whose ``main(control_fd=, input_fd=, output_fd=)`` is the child.
        niceness: how much less urgent than this process the child is, in steps of nice(2).
    """

    def __init__(
        self,
        *,
        view: ViewConfig,
        limits: Limits,
        recycle_after: int = 1000,
        child_module: str = "vidray.sandbox.child",
        crop: CropConfig | None = None,
        niceness: int = 0,
    ) -> None:
        if recycle_after < 1:
            raise ValueError(f"recycle_after must be at least 1, got {recycle_after}")
        if crop is not None and view.num_views != 1:
            raise ValueError(f"a training clip is one view, got num_clips={view.num_clips}, num_crops={view.num_crops}")
        self._view = view
        self._limits = limits
        self._recycle_after = recycle_after
        self._child_module = child_module
        self._crop = crop
        self._niceness = niceness
        self._child: _Child | None = None
        self._confinement: Confinement | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, None if there is none now."""
        return self._child.pid if self._child else None

    @property
    def confinement(self) -> Confinement | None:
        """What the kernel enforces on the child (the last, if there is none now); None until one was ready."""
        return self._confinement

    def start(self) -> None:
        """Start the child if there is none, without waiting for it: its imports overlap with what comes next."""
        if self._child is None:
            self._child = _Child(view=self._view, limits=self._limits, module=self._child_module, crop=self._crop)
            if self._niceness:
                lower_priority(self._child.pid, by=self._niceness)

    def decode(
        self,
        data: bytes | memoryview | RangeSource,
        *,
        out: np.ndarray | None = None,
        time_range: TimeRange = WHOLE_FILE,
        seed: int = 0,
    ) -> tuple[np.ndarray, VideoInfo]:
        """The views of one video, or its training clip, uint8 (V, T, H, W, C): a new array, or ``out``.

        Args:
            data: the file's bytes, or where they come from: then only those that are needed, if the file has an index
                that can be relied on. Waiting for them does not count against the deadline.
            time_range: what of the file counts as the video.
            seed: decides what is random in a training clip.

        Raises:
            VideoError: with what the decoder found (``corrupt``, ``no_video``, ...), or with ``decode_timeout``,
                ``decoder_crashed`` or ``out_of_memory`` if this video ended the child; or with what the source raises.
            RunError: no child could be started, or its sandbox is not as closed as the limits require, which is no
                video's fault.
        """
        self._check(data, out)
        child = self._ready_child()
        try:
            info = child.decode(data, time_range=time_range, seed=seed)
        except NeedsWholeFileError:
            assert not isinstance(data, bytes | memoryview)
            return self.decode(data.read_all(), out=out, time_range=time_range, seed=seed)
        except VideoError as error:
            if error.status in _ENDINGS or child.is_waiting:
                self.close()
            raise
        except BaseException:  # such as Ctrl-C: the reply is still on its way, and would be taken for the next one
            self.close()
            raise
        if out is None:
            out = np.empty(self._view.views_shape, np.uint8)
        child.copy_views(out)
        return out, info

    def stream(
        self, data: bytes | memoryview, *, time_range: TimeRange = WHOLE_FILE
    ) -> Generator[tuple[np.ndarray, VideoInfo], None, None]:
        """The chunks of one video, (T, H, W, C) uint8, each a new array, and what is known so far; the last, with all
        that is known, has fewer frames than those before it, perhaps none.

        The child decodes the next chunk while this one is worked on; so ``decode_seconds`` are its CPU seconds. The
        deadline is one chunk's. Needs a view config with ``span`` "stream" or "segments". To stop early ends the child.

        Raises:
            VideoError: as `decode`, at any chunk: what came before is of a video that failed.
            RunError: as `decode`.
        """
        self._check(data, None)
        child = self._ready_child()
        is_idle = False
        try:
            child.begin(data, time_range=time_range)
            del data  # by now it lies in the input memory, and may be large
            num_left = most_frames(duration_seconds=self._limits.max_duration_seconds, view=self._view)
            for chunk in stream_chunks(self._view):
                frames_THWC, info = child.receive_chunk(min(chunk.num_frames, num_left))
                num_left -= len(frames_THWC)  # a child that was taken over could go on for ever
                is_idle = len(frames_THWC) < chunk.num_frames
                if not is_idle:
                    child.ask_next()
                yield frames_THWC, info
                if is_idle:
                    return
        except VideoError as error:
            is_idle = error.status not in _ENDINGS
            raise
        finally:
            if is_idle:
                child.forget_input()
            else:
                self.close()

    def close(self) -> None:
        """End the child. The next `decode` or `stream` starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, data: bytes | memoryview | RangeSource, out: np.ndarray | None) -> None:
        num_bytes = memoryview(data).nbytes if isinstance(data, bytes | memoryview) else data.size_bytes
        if num_bytes > self._limits.max_object_bytes:
            raise VideoError(Status.TOO_LARGE, f"{num_bytes} bytes, allowed are {self._limits.max_object_bytes}")
        if out is not None and (out.shape != self._view.views_shape or out.dtype != np.uint8):
            raise ValueError(f"out must be uint8 {self._view.views_shape}, got {out.dtype} {out.shape}")

    def _ready_child(self) -> _Child:
        """A child that waits for a request: the one there is, unless it is old, or died or spoke while it was idle."""
        child = self._child
        if child and child.is_ready and (child.num_videos >= self._recycle_after or child.has_news()):
            self.close()
        for attempt in range(1, _START_ATTEMPTS + 1):
            self.start()
            assert self._child is not None
            try:
                self._child.wait_until_ready()
            except VideoError as error:
                self.close()
                if attempt == _START_ATTEMPTS:
                    raise RunError(f"no decoder process could be started in {attempt} attempts: {error}") from error
            except BaseException:
                self.close()
                raise
            else:
                self._confinement = self._child.confinement
                self._check_confinement()
                return self._child
        raise AssertionError("unreachable")

    def _check_confinement(self) -> None:
        """Raise RunError if the kernel does not close to the child all that was required."""
        confinement = self._confinement
        if self._limits.require_sandbox and confinement is not None and not confinement.is_full:
            self.close()
            raise RunError(
                f"--require-sandbox: on {socket.gethostname()} {confinement}, because {confinement.what_is_missing()}. "
                "Without --require-sandbox the run goes on there"
            )


class _Child:
    """One child process, the memory it shares, and the way to talk to it."""

    def __init__(self, *, view: ViewConfig, limits: Limits, module: str, crop: CropConfig | None) -> None:
        self._view = view
        self._limits = limits
        self.num_videos = self._num_requests = 0
        self.confinement: Confinement | None = None
        """What the kernel enforces on it; None until it is ready."""
        self._pages: PageServer | None = None
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as childs_ends:
            self._control, childs_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._control.close)
            childs_ends.enter_context(childs_control)
            # Shared memory is new for each child: whatever an old one left running cannot write into it.
            self._input_fd = os.memfd_create("vidray-input")
            undo.callback(os.close, self._input_fd)
            output_fd = sealed_memory(view.num_bytes)
            childs_ends.callback(os.close, output_fd)
            self._output = mmap.mmap(output_fd, view.num_bytes, prot=mmap.PROT_READ)
            undo.callback(self._output.close)
            read_input_fd = os.open(f"/proc/self/fd/{self._input_fd}", os.O_RDONLY)
            childs_ends.callback(os.close, read_input_fd)
            fds = {"control_fd": childs_control.fileno(), "input_fd": read_input_fd, "output_fd": output_fd}
            self._process, self._stderr = spawn(module, fds)
            undo.callback(self._stderr.close)
            undo.callback(kill, self._process)
            self._control.send(pack_config(view=view, limits=limits, crop=crop))
            # Also when the sandbox is forgotten without close(), and when the interpreter exits.
            self._end = weakref.finalize(self, undo.pop_all().close)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        return self.confinement is not None

    def has_news(self) -> bool:
        """True if there is something to read, or the end, although nothing was asked."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(0))

    def wait_until_ready(self) -> None:
        """Raises VideoError if the child dies instead."""
        if not self.is_ready:
            message = self._receive(timeout_seconds=START_TIMEOUT_SECONDS, doing="starting")
            try:
                self.confinement = unpack_ready(message)
            except WireError as error:
                raise self._lied(str(error)) from None

    def decode(self, data: bytes | memoryview | RangeSource, *, time_range: TimeRange, seed: int) -> VideoInfo:
        """Have ``data`` decoded into the output memory. Raises VideoError; NeedsWholeFileError if it comes in pages."""
        if isinstance(data, bytes | memoryview):
            sizes, self._pages = {"num_bytes": self._write_input(memoryview(data).cast("B"))}, None
        else:
            self.num_videos += 1
            sizes = {"num_bytes": data.size_bytes, "page_bytes": data.page_bytes}
            self._pages = PageServer(data, input_fd=self._input_fd)
        start = time.perf_counter()
        self._ask(**sizes, time_range=time_range, seed=seed)
        try:
            reply = self._receive_good()
        finally:
            self.forget_input()
        if reply.shape != self._view.views_shape:
            raise self._lied(f"views must be {self._view.views_shape}, got {reply.shape}")
        seconds = time.perf_counter() - start - (self._pages.seconds if self._pages else 0)
        return dataclasses.replace(reply.info, decode_seconds=seconds)

    @property
    def is_waiting(self) -> bool:
        """True if it waits for pages of a video that cannot be had."""
        return self._pages is not None and self._pages.is_asked

    def begin(self, data: bytes | memoryview, *, time_range: TimeRange) -> None:
        """Have the first chunk of ``data`` decoded, without waiting for it."""
        num_bytes = self._write_input(memoryview(data).cast("B"))
        self._cpu_seconds_before = self._cpu_seconds()
        self._ask(num_bytes=num_bytes, time_range=time_range)

    def ask_next(self) -> None:
        """Have the next chunk decoded, into the same memory, without waiting for it."""
        self._ask(is_next=True)

    def receive_chunk(self, max_frames: int) -> tuple[np.ndarray, VideoInfo]:
        """A copy of the chunk that was asked for, (T, H, W, C). Raises VideoError."""
        reply = self._receive_good()
        num_frames, room_THWC = reply.shape[1], self._view.views_shape[1:]
        if reply.shape != (1, num_frames, *room_THWC[1:]) or num_frames > max_frames:
            raise self._lied(f"a chunk must be (1, at most {max_frames}, *{room_THWC[1:]}), got {reply.shape}")
        frames_THWC = np.frombuffer(self._output, np.uint8).reshape(room_THWC)[:num_frames].copy()
        seconds = self._cpu_seconds() - self._cpu_seconds_before
        return frames_THWC, dataclasses.replace(reply.info, decode_seconds=seconds)

    def _cpu_seconds(self) -> float:
        """What the child has used so far."""
        return time.clock_gettime(~self.pid << 3 | 2)  # CPUCLOCK_SCHED of another process, see clock_getcpuclockid(3)

    def _ask(self, **request: Any) -> None:
        self._num_requests += 1
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile: the end is what is received
            self._control.send(pack_request(Request(request_id=self._request_id, **request)))

    def _receive_good(self) -> Reply:
        message = self._receive_answer()
        try:
            reply = unpack_reply(message, request_id=self._request_id)
        except WireError as error:
            raise self._lied(str(error)) from None
        if reply.status is not Status.OK:
            raise VideoError(reply.status, reply.message)
        return reply

    def _receive_answer(self) -> bytes:
        """The message that ends the request. Those before it ask for pages; to bring them takes none of its time."""
        timeout_seconds, spent_seconds = self._limits.decode_timeout_seconds, 0.0
        while True:
            asked_at = time.monotonic()
            message = self._receive(timeout_seconds=timeout_seconds, spent_seconds=spent_seconds, doing="decoding")
            spent_seconds += time.monotonic() - asked_at
            if self._pages is None:
                return message
            if message == pack_whole(self._request_id):
                raise NeedsWholeFileError
            try:
                if not self._pages.serve(message, request_id=self._request_id):
                    return message
            except WireError as error:
                raise self._lied(str(error)) from None
            try:
                self._control.send(pack_brought(self._request_id))
            except BrokenPipeError:
                pass  # it died meanwhile: the end is what is received
            except TimeoutError:
                raise self._lied("it does not read what it asked for") from None

    def copy_views(self, out: np.ndarray) -> None:
        """Copy the views of the last video. No array over the memory outlives this: it could not be closed then."""
        np.copyto(out, np.frombuffer(self._output, np.uint8).reshape(self._view.views_shape))

    def stop(self) -> None:
        """Kill it and give back all that it held. May be called again."""
        self._end()

    @property
    def _request_id(self) -> int:
        return self._num_requests & 0xFFFFFFFF

    def _write_input(self, data: memoryview) -> int:
        self.num_videos += 1
        position = 0
        while position < len(data):
            position += os.pwrite(self._input_fd, data[position:], position)
        return position

    def forget_input(self) -> None:
        """Give back the memory of a large video, which the child needs no more."""
        if os.fstat(self._input_fd).st_size > _KEPT_INPUT_BYTES:
            os.ftruncate(self._input_fd, 0)

    def _receive(self, *, timeout_seconds: float, doing: str, spent_seconds: float = 0.0) -> bytes:
        """The child's next message. Raises VideoError with the way it failed to give one."""
        self._control.settimeout(max(timeout_seconds - spent_seconds, 0.001))
        try:
            message = self._control.recv(REPLY_BYTES + 1)
        except TimeoutError:
            raise VideoError(
                Status.DECODE_TIMEOUT, f"the decoder was killed after {timeout_seconds:g} seconds of {doing}"
            ) from None
        except ConnectionError:  # it died with a request unread
            message = b""
        last_words = self._last_words()
        if not message:
            status, how = self._death()
            raise VideoError(status, f"the decoder {how} while {doing}{last_words}")
        return message

    def _lied(self, how: str) -> VideoError:
        return VideoError(Status.DECODER_CRASHED, f"the decoder broke its protocol: {how}")

    def _last_words(self) -> str:
        """What the child wrote to stderr since it was last read, so that its pipe never fills; the end of it."""
        with contextlib.suppress(OSError):
            written = os.read(self._stderr.fileno(), 1 << 16)
            if text := printable(written[-_MAX_LAST_WORDS_BYTES:]):
                return f"; it said: {text}"
        return ""

    def _death(self) -> tuple[Status, str]:
        """What ended the child, which has hung up: the status for the video, and how to say it."""
        code = await_exit(self._process.pid, seconds=_EXIT_GRACE_SECONDS)
        if code is None:
            return Status.DECODER_CRASHED, "hung up without exiting"
        if code >= 0:
            return Status.DECODER_CRASHED, f"exited with code {code}"
        if code == -signal.SIGALRM:
            return Status.DECODE_TIMEOUT, "ran into its own deadline (SIGALRM)"
        if code == -signal.SIGKILL:
            # Nobody but the kernel does that in normal operation. It is transient, so the next run tries again.
            return Status.OUT_OF_MEMORY, "was killed from outside (SIGKILL), most likely because memory ran out,"
        return Status.DECODER_CRASHED, f"died of {signal_name(-code)}"
