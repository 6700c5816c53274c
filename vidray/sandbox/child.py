"""The disposable process that decodes videos for a `vidray.sandbox.sandbox.Sandbox`.

It gives up what it does not need before it sees the first byte of a video, and it never lives longer than its parent:
while idle it waits on the control socket, which ends when the parent does; while decoding its own timer runs.
Everything here holds even if the decoder is tricked into running foreign code, where the kernel enforces it, except
for the timer, which is the parent's second line only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import gc
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vidray.errors import VideoError
from vidray.sandbox.protocol import (
    MAX_CONFIG_BYTES,
    REQUEST_BYTES,
    Reply,
    Request,
    WireError,
    pack_reply,
    unpack_config,
    unpack_request,
)
from vidray.types import Limits, Status, TimeRange, VideoInfo, ViewConfig
from vidray.video.byte_sources import DescriptorFile
from vidray.video.random_crops import ClipDraw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMER_GRACE_SECONDS = 1.0
"""The parent's deadline comes first, because it alone can say what happened; the child's own follows."""
_MAX_OPEN_FILES = 32

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNET = 0x40000000
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_LANDLOCK_READ_FILE_AND_FOLDER = 0b1100
_LANDLOCK_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many kinds of access to files each version of Landlock knows; 16 from version 5 on."""


class Decode(Protocol):
    """What `vidray.video.views.decode_views` is."""

    def __call__(
        self,
        data: bytes,
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
        self, file: DescriptorFile, *, view: ViewConfig, limits: Limits, out: np.ndarray
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
    views_VTHWC = np.frombuffer(mmap.mmap(output_fd, view.num_bytes), np.uint8).reshape(view.views_shape)
    set_memory_limit = confine(limits=limits)
    control.send(pack_reply(Reply(request_id=0, status=Status.OK)))
    streams = _Streams(functools.partial(stream, view=view, limits=limits, out=views_VTHWC), input_fd)
    while message := control.recv(REQUEST_BYTES + 1):
        request = unpack_request(message)
        signal.setitimer(signal.ITIMER_REAL, limits.decode_timeout_seconds + TIMER_GRACE_SECONDS)
        if view.span == "stream":
            make = functools.partial(streams.answer, request, view=view)
        else:
            draw = ClipDraw(crop=crop, seed=request.seed) if crop else None
            views = functools.partial(
                decode, view=view, limits=limits, out=views_VTHWC, time_range=request.time_range, draw=draw
            )
            read = functools.partial(_read_input, input_fd, request.num_bytes, set_memory_limit)
            make = functools.partial(_decode_into, views_VTHWC, views, read)
        reply = _answer(make, request_id=request.request_id, limits=limits)
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: the next recv says so
            control.send(pack_reply(reply))
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


def _decode_into(
    out: np.ndarray, decode: Callable[[bytes], tuple[np.ndarray, VideoInfo]], read: Callable[[], bytes]
) -> tuple[tuple[int, ...], VideoInfo]:
    views_VTHWC, info = decode(read())
    if views_VTHWC is not out:
        np.copyto(out, views_VTHWC)
    return out.shape, info


class _Streams:
    """The video that is being streamed, if one is. It is read from the input memory as it goes: no copy of it."""

    def __init__(self, stream: Callable[[DescriptorFile], Iterator[tuple[int, VideoInfo]]], input_fd: int) -> None:
        self._stream, self._input_fd = stream, input_fd
        self._chunks: Iterator[tuple[int, VideoInfo]] | None = None

    def answer(self, request: Request, *, view: ViewConfig) -> tuple[tuple[int, ...], VideoInfo]:
        """The shape of the chunk that is in the output memory now. Raises what ended the stream."""
        if not request.is_next:
            self._chunks = self._stream(DescriptorFile(self._input_fd, request.num_bytes))
        if self._chunks is None:
            raise WireError("there is no stream to go on with")
        num_frames, info = next(self._chunks)
        return (1, num_frames, *view.views_shape[2:]), info


def _answer(make: Callable[[], tuple[tuple[int, ...], VideoInfo]], *, request_id: int, limits: Limits) -> Reply:
    try:
        shape, info = make()
        return Reply(request_id=request_id, status=Status.OK, shape=shape, info=info)
    except VideoError as error:
        status, message = error.status, error.message
    except MemoryError:
        status, message = Status.OUT_OF_MEMORY, f"decoding needs more than {limits.decode_memory_bytes} bytes of memory"
    except Exception as error:
        is_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
        status = Status.OUT_OF_MEMORY if is_memory else Status.DECODER_CRASHED
        message = f"the decoder raised {type(error).__name__}: {error}"
    gc.collect()  # frames of a failed decode would count against the next video's memory
    return Reply(request_id=request_id, status=status, message=message)


def confine(*, limits: Limits) -> Callable[[int], None]:
    """Give up files, network, memory and privileges. Returns what moves the memory limit by so many bytes.

    The kernel features that need a newer kernel or a privilege are used where they are there.
    """
    with contextlib.suppress(OSError):  # if memory runs out on the machine, this process goes first, not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    set_memory_limit = _limit_resources(limits)
    libc = ctypes.CDLL(None, use_errno=True)
    # Core dumps go to a handler program whatever RLIMIT_CORE says where core_pattern is a pipe; not for these.
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # A set-uid program that it starts gives it nothing; also what Landlock asks for.
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A network of its own, without devices: closes UDP too. Needs root (and no user namespace is made to become it:
    # that would open more of the kernel to the decoder than it closes).
    libc.unshare(_CLONE_NEWNET)
    _deny_files_and_tcp(libc)
    return set_memory_limit


def _limit_resources(limits: Limits) -> Callable[[int], None]:
    """Bound what can be bounded by number.

    Returns what moves the memory limit for so many bytes beyond: a video's own bytes do not count against it, neither
    mapped nor copied.
    """
    base_bytes = _address_space_bytes() + limits.decode_memory_bytes
    hard_bytes = base_bytes + 2 * limits.max_object_bytes + mmap.PAGESIZE

    def set_memory_limit(num_more_bytes: int) -> None:
        _set_limit(resource.RLIMIT_AS, base_bytes + num_more_bytes + mmap.PAGESIZE, hard_bytes)

    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # writes nothing; its memory is mapped
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),  # starts neither threads nor processes that could outlive it (root may)
    ):
        _set_limit(kind, value, value)
    set_memory_limit(0)
    return set_memory_limit


def _set_limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit, or the one that is there where that is lower: it cannot be raised."""
    there = resource.getrlimit(kind)[1]
    if there != resource.RLIM_INFINITY:
        soft, hard = min(soft, there), min(hard, there)
    resource.setrlimit(kind, (soft, hard))


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def _deny_files_and_tcp(libc: ctypes.CDLL) -> None:
    """Landlock: no file can be opened but the program's own code, no TCP port reached, no process outside signalled.

    https://docs.kernel.org/userspace-api/landlock.html; the numbers of the calls are the same on every architecture.
    """
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1:  # not in this kernel, or not allowed
        return
    file_rights = (1 << _LANDLOCK_NUM_FILE_RIGHTS.get(version, 16)) - 1
    tcp_rights = 0b11 if version >= 4 else 0  # bind, connect
    scopes = 0b11 if version >= 6 else 0  # abstract Unix sockets, signals
    handled = struct.pack("=QQQ", file_rights, tcp_rights, scopes)
    ruleset_fd = libc.syscall(_LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset_fd < 0:
        return
    for folder in _code_folders():
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        rule = struct.pack("=Qi", _LANDLOCK_READ_FILE_AND_FOLDER, folder_fd)
        libc.syscall(_LANDLOCK_ADD_RULE, ruleset_fd, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(folder_fd)
    libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset_fd, 0)
    os.close(ruleset_fd)


def _code_folders() -> set[str]:
    """Folders of Python's own library and of the packages in use: some of their modules are imported when needed."""
    packages = {name.partition(".")[0] for name in sys.modules}
    paths = [path for name in packages for path in getattr(sys.modules.get(name), "__path__", ())]
    return {path for path in [os.path.dirname(os.__file__), *paths] if os.path.isdir(path)}
