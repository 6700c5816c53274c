"""Runs all tries through a sandbox, as the user that it runs as, and prints JSON: name of a try → what came of it.

    python -m tests.support.hostile.parent tests.support.hostile.child

``reached``: whom it was for has got it. ``done``: the call succeeded. ``lost``: it did, and nobody got it. Else the
error's name, or how the child ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.hostile.tries import TRIES
from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.types import Limits, Status, ViewConfig

SENDING = frozenset(name for name in TRIES if name.startswith(("connect", "send a", "signal the", "queue", "have")))
"""Tries that succeed only if they reach somebody."""
VIEW = ViewConfig(num_frames=1, size=8, num_clips=1)
LIMITS = Limits(decode_timeout_seconds=20, decode_memory_bytes=256 * 1024**2, max_object_bytes=1024**2)


class Listeners:
    """Sockets of all kinds, on this machine only."""

    def __init__(self, folder: str) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.stream_path, self.datagram_path = f"{folder}/stream", f"{folder}/datagram"
        self.abstract = f"vidray-{os.getpid()}"
        self._sockets = [self.tcp, self.udp]
        for kind, address in (
            (socket.SOCK_STREAM, self.stream_path),
            (socket.SOCK_DGRAM, self.datagram_path),
            (socket.SOCK_STREAM, f"\0{self.abstract}"),
        ):
            listener = socket.socket(socket.AF_UNIX, kind)
            listener.bind(address)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            self._sockets.append(listener)
        self._has_signal = False
        signal.signal(signal.SIGUSR1, self._note_signal)

    def _note_signal(self, *_: object) -> None:
        self._has_signal = True

    def targets(self) -> dict[str, Any]:
        return {
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "stream_path": self.stream_path,
            "datagram_path": self.datagram_path,
            "abstract": self.abstract,
        }

    def were_reached(self) -> bool:
        """Whether somebody came since this was last asked."""
        ready = select.select(self._sockets, [], [], 0)[0]
        for listener in ready:
            if listener.type == socket.SOCK_STREAM:
                listener.accept()[0].close()
            else:
                listener.recv(1)
        has_signal, self._has_signal = self._has_signal, False
        return bool(ready) or has_signal


def come_of(sandbox: Sandbox, name: str, targets: dict[str, Any], listeners: Listeners) -> str:
    """What came of one try."""
    folder = Path(targets["folder"])
    (folder / "file").write_text("secret")
    with contextlib.suppress(FileNotFoundError):
        new = folder / "new"
        new.rmdir() if new.is_dir() and not new.is_symlink() else new.unlink()
    try:
        sandbox.decode(json.dumps([name, targets]).encode())
    except VideoError as error:
        came = error.message if error.status is Status.UNSUPPORTED else end_of(error)
        if listeners.were_reached():
            return "reached"
        return "lost" if came == "done" and name in SENDING else came
    raise AssertionError("a hostile child decodes nothing")


def end_of(error: VideoError) -> str:
    """How a child ended that said nothing of its try."""
    for words, end in (("died of SIGSYS", "SIGSYS"), ("broke its protocol", "reached"), ("exited with code 0", "done")):
        if words in error.message:
            return end
    return error.message


def main() -> None:
    """Prints the JSON."""
    buffer = ctypes.create_string_buffer(b"8 bytes.")
    with tempfile.TemporaryDirectory(prefix="vidray-hostile-") as folder:
        listeners = Listeners(folder)
        own = {"parent": os.getpid(), "address": ctypes.addressof(buffer), "folder": folder}
        with Sandbox(view=VIEW, limits=LIMITS, child_module=sys.argv[1]) as sandbox:
            found = {name: come_of(sandbox, name, own | listeners.targets(), listeners) for name in TRIES}
            print(json.dumps({"confinement": str(sandbox.confinement), "found": found}))


if __name__ == "__main__":
    main()
