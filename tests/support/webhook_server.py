"""A webhook of the test's own, on loopback: it keeps what it is told, and answers as it is told to."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Webhook:
    """What a server got, and what it answers to that."""

    answers: list[int]
    """Status of each answer in turn; the last one again and again."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def webhook_server(*answers: int) -> Iterator[Webhook]:
    """A server with a secret in its path."""
    hook = Webhook(answers=list(answers or (200,)))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", hook.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_port}/services/SECRET?sig=SECRET"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
