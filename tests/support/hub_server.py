"""As much of the Hugging Face Hub's HTTP interface as an upload needs, on a loopback port; it keeps what came."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True, slots=True)
class Hub:
    """What clients have said."""

    endpoint: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests to create a repository."""
    files: dict[str, bytes] = field(default_factory=dict)
    """By path, of all commits."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub without repositories, for as long as the context lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps(_answer(hub, self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """In silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


def _answer(hub: Hub, path: str, body: bytes) -> dict[str, Any]:
    if path == "/api/repos/create":
        hub.created.append(json.loads(body))
        return {"url": f"{hub.endpoint}/somebody/model", "id": "somebody/model"}
    if path.endswith("/preupload/main"):
        names = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
    if path.endswith("/commit/main"):
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{hub.endpoint}/somebody/model/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
    return {"errors": [], "warnings": []}  # of the model card's metadata
