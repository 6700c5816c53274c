"""A web server on loopback that gives parts of objects, as slowly as asked for, and counts what it sends."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Callable
from typing import Self

_PIECE_BYTES = 1 << 18


class RangeServer:
    """Serves ``objects`` by name while it is entered."""

    def __init__(
        self, objects: dict[str, bytes], *, latency_seconds: float = 0.0, bytes_per_second: float = 0.0
    ) -> None:
        """Args:
        latency_seconds: before each answer begins.
        bytes_per_second: of all answers together; 0: no limit.
        """
        self.objects, self.etag = objects, '"1"'
        self.has_ranges = True
        """False: it gives whole objects, whatever it is asked for."""
        self.on_range: Callable[[int, int], None] = lambda start, stop: None
        """Called before a part is sent."""
        self.num_requests = self.bytes_sent = 0
        self._bytes_per_second, self._lock, self._free_at = bytes_per_second, threading.Lock(), 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                time.sleep(latency_seconds)
                data = self._answer()
                for at in range(0, len(data), _PIECE_BYTES):
                    piece = data[at : at + _PIECE_BYTES]
                    outer._wait_for_turn(len(piece))
                    self.wfile.write(piece)

            def _answer(self) -> memoryview:
                """Sends the head. Returns what is to follow."""
                data = memoryview(outer.objects[self.path.strip("/")])
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if outer.has_ranges else None
                if part is None:
                    self.send_response(200)
                else:
                    start, stop = int(part[1]), int(part[2]) + 1
                    outer.on_range(start, stop)
                    size, data = len(data), data[start:stop]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
                self.send_header("ETag", outer.etag)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                outer.num_requests += 1
                return data

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # the client is gone, or ``on_range`` broke the answer off

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _wait_for_turn(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_sent += num_bytes
            if not self._bytes_per_second:
                return
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + num_bytes / self._bytes_per_second
            pause = self._free_at - now
        time.sleep(pause)
