"""A web server of the test's own, on loopback: serves the files of a folder, and refuses some of them."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Self


class FileServer:
    """Serves ``folder`` while it is entered. Every object has the ETag ``"e"``."""

    def __init__(self, folder: Path) -> None:
        self.refused: set[str] = set()
        """Paths that are answered with 403."""
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def send_head(self):  # of GET and HEAD alike
                if self.path in outer.refused:
                    self.send_error(403)
                    return None
                return super().send_head()

            def end_headers(self) -> None:
                self.send_header("ETag", '"e"')
                super().end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
