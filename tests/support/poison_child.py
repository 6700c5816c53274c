"""A sandbox child that misbehaves on chosen videos, and is the real one on all others.

    sandbox = Sandbox(view=view, limits=limits, child_module="tests.support.poison_child")
    sandbox.decode(poisoned(good_video, "segfault"))

The fault's name (and argument) stands in the last bytes of the video, behind a marker.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np

from vidray.errors import VideoError
from vidray.sandbox import child as sandbox_child
from vidray.sandbox import protocol as sandbox_wire
from vidray.types import Status, VideoInfo, ViewConfig
from vidray.video.byte_sources import DescriptorFile

_MARKER = b"\nvidray-poison:"
_MAX_MARKER_BYTES = 256


def poisoned(data: bytes, fault: str, argument: str = "") -> bytes:
    """``data`` marked so that the child commits ``fault``, one of `FAULTS` or `LIES`, when it is to decode it."""
    if fault not in FAULTS and fault not in LIES:
        raise ValueError(f"fault must be one of {[*FAULTS, *LIES]}, got {fault!r}")
    return data + _MARKER + json.dumps([fault, argument]).encode()


def main(*, control_fd: int, input_fd: int, output_fd: int) -> None:
    """The real child's loop around a decode that looks for the marker first."""
    from vidray.video.views import decode_views, stream_views

    num_requests = 0

    def decode(data: bytes, *, view: ViewConfig, **how: object) -> tuple[np.ndarray, VideoInfo]:
        nonlocal num_requests
        num_requests += 1
        _, marker, poison = data[-_MAX_MARKER_BYTES:].rpartition(_MARKER)
        if marker:
            fault, argument = json.loads(poison)
            if fault in LIES:
                _send(control_fd, LIES[fault](view, num_requests))
                time.sleep(3600)
            FAULTS[fault](argument or str(output_fd))
        return decode_views(data, view=view, **how)  # type: ignore[arg-type]

    def stream(file: DescriptorFile, *, view: ViewConfig, **how: object) -> Iterator[tuple[int, VideoInfo]]:
        """The fault's argument is the chunk instead of which it is committed."""
        nonlocal num_requests
        fault, argument = _fault_of(file)
        for index, chunk in enumerate(stream_views(file, view=view, **how)):  # type: ignore[arg-type]
            num_requests += 1
            if fault and index == int(argument):
                if fault in LIES:
                    _send(control_fd, LIES[fault](view, num_requests))
                    time.sleep(3600)
                while fault == "endless":
                    yield view.num_frames, VideoInfo()
                FAULTS[fault](str(output_fd))
            yield chunk

    fds = {"control_fd": control_fd, "input_fd": input_fd, "output_fd": output_fd}
    sandbox_child.main(**fds, decode=decode, stream=stream)


def _fault_of(file: DescriptorFile) -> tuple[str, str]:
    """What the marker at the end of a file says; nothing if there is none."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_MARKER_BYTES))
    _, marker, poison = file.read(_MAX_MARKER_BYTES).rpartition(_MARKER)
    fault, argument = json.loads(poison) if marker else ("", "")
    return fault, argument


def _segfault(_: str) -> None:
    ctypes.string_at(0)


def _hang_with_gil(_: str) -> None:
    os.write(2, b"hanging\n")  # tests wait for it
    ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the GIL, as a decoder's C loop would: no Python signal handler runs


def _eat_memory(_: str) -> None:
    hoard = []
    while True:
        hoard.append(np.ones(8 * 1024**2, np.uint8))


def _kill_self(signal_name: str) -> None:
    os.kill(os.getpid(), signal.Signals[signal_name])


def _exit_zero(_: str) -> None:
    os._exit(0)


def _hang_up(_: str) -> None:
    os.closerange(3, 4096)  # the numbers are the parent's, who may have many files open
    time.sleep(3600)


def _shrink_output(output_fd: str) -> None:
    os.ftruncate(int(output_fd), 0)


def _grow_output(output_fd: str) -> None:
    os.ftruncate(int(output_fd), 1 << 40)


def _raise_key_error(_: str) -> None:
    raise KeyError("a bug")


def _talk(_: str) -> None:
    for _line in range(2000):
        try:
            os.write(2, b"\x1b[31m" + b"x" * 1000 + b"\n")
        except BlockingIOError:
            return


def _leave_process_behind(_: str) -> None:
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)


def _report(text: str) -> None:
    raise VideoError(Status.UNSUPPORTED, text)


def _report_environment(_: str) -> None:
    _report(json.dumps({"names": sorted(os.environ), "cwd": os.getcwd(), "umask": os.umask(0o077)}))


def _report_open_files(_: str) -> None:
    _report(json.dumps(sorted({os.readlink(f"/proc/self/fd/{fd}") for fd in _open_fds()})))


def _open_fds() -> list[int]:
    """Tried one by one, because the folder of /proc that lists them cannot be opened here."""
    fds = []
    for fd in range(256):
        try:
            os.fstat(fd)
        except OSError:
            continue
        fds.append(fd)
    return fds


FAULTS: dict[str, Callable[[str], None]] = {
    "segfault": _segfault,
    "hang": _hang_with_gil,
    "memory": _eat_memory,
    "signal": _kill_self,
    "exit_zero": _exit_zero,
    "hang_up": _hang_up,
    "shrink_output": _shrink_output,
    "grow_output": _grow_output,
    "key_error": _raise_key_error,
    "talk": _talk,
    "leave_process_behind": _leave_process_behind,
    "report_environment": _report_environment,
    "report_open_files": _report_open_files,
    "endless": lambda _: None,
}
"""What the child does instead of decoding, or before it. Each takes the argument of the marker."""


def _send(control_fd: int, messages: list[bytes]) -> None:
    for message in messages:
        os.write(control_fd, message)  # without a socket object, which asks the kernel what it is about


def _reply(view: ViewConfig, request_id: int, **changes: object) -> bytes:
    values = {"request_id": request_id, "status": Status.OK, "shape": view.views_shape, "info": VideoInfo(), **changes}
    return sandbox_wire.pack_reply(sandbox_wire.Reply(**values))  # type: ignore[arg-type]


def _patched(reply: bytes, format: str, offset: int, value: object) -> list[bytes]:
    message = bytearray(reply)
    struct.pack_into(format, message, offset, value)
    return [bytes(message)]


_LENGTH_OFFSET = sandbox_wire.REPLY_BYTES - sandbox_wire.MAX_MESSAGE_BYTES - 2

LIES: dict[str, Callable[[ViewConfig, int], list[bytes]]] = {
    "garbage": lambda view, n: [b"\xff" * sandbox_wire.REPLY_BYTES],
    "too_short": lambda view, n: [_reply(view, n)[:-1]],
    "too_long": lambda view, n: [_reply(view, n) + b"\0"],
    "pickle": lambda view, n: [b"\x80\x04cos\nsystem\n".ljust(sandbox_wire.REPLY_BYTES, b".")],
    "wrong_magic": lambda view, n: _patched(_reply(view, n), "<4s", 0, b"vrQ1"),
    "wrong_request": lambda view, n: [_reply(view, n + 1)],
    "wrong_status": lambda view, n: _patched(_reply(view, n), "<B", 8, 200),
    "wrong_shape": lambda view, n: [_reply(view, n, shape=(2**31, 2**31, 1, 1, 1))],
    "wrong_length": lambda view, n: _patched(_reply(view, n), "<H", _LENGTH_OFFSET, 65535),
    "infinite_duration": lambda view, n: [_reply(view, n, info=VideoInfo(duration_seconds=float("inf")))],
    "negative_fps": lambda view, n: [_reply(view, n, info=VideoInfo(fps=-1.0))],
    "huge_count": lambda view, n: [_reply(view, n, info=VideoInfo(num_frames_decoded=2**62))],
    "odd_codec": lambda view, n: [_reply(view, n, info=VideoInfo(codec="h264\n\x1b[31m"))],
}
"""Replies that an honest child would not send to request n."""
