"""As much of Google Cloud Storage's JSON API as gcsfs uses, on a loopback port, in memory.

Uploads (in one request and resumable) honour ``ifGenerationMatch=0``; every write gives an object a new generation.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.servers import Server

_PAGE = 1000


class AnswerError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(kw_only=True, slots=True)
class Objects:
    """What the server holds."""

    objects: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    """(bucket, name) → (generation, data)."""
    uploads: dict[str, tuple[str, str, bool, bytearray]] = field(default_factory=dict)
    """Upload id → (bucket, name, whether there must be none yet, data so far)."""
    generations: Iterator[int] = field(default_factory=lambda: itertools.count(1700000000000001))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, bucket: str, name: str, data: bytes, *, only_new: bool) -> dict[str, Any]:
        """Write an object; the condition and the write are one step."""
        with self.lock:
            if only_new and (bucket, name) in self.objects:
                raise AnswerError(412, "At least one of the pre-conditions you specified did not hold.")
            self.objects[bucket, name] = (next(self.generations), bytes(data))
        return self.describe(bucket, name)

    def get(self, bucket: str, name: str) -> tuple[int, bytes]:
        """Generation and data."""
        if (bucket, name) not in self.objects:
            raise AnswerError(404, f"No such object: {bucket}/{name}")
        return self.objects[bucket, name]

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        """An object's resource."""
        generation, data = self.get(bucket, name)
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "timeCreated": "2026-11-26T02:00:00.000Z",
            "updated": "2026-11-26T02:00:00.000Z",
        }

    def delete(self, bucket: str, name: str) -> None:
        """Remove an object."""
        with self.lock:
            self.get(bucket, name)
            del self.objects[bucket, name]

    def page(self, bucket: str, *, prefix: str, delimiter: str, token: str, size: int) -> dict[str, Any]:
        """One page of a listing, names in order; the token is the last name of the page before."""
        names = sorted(name for at, name in list(self.objects) if at == bucket and name.startswith(prefix))
        found: dict[str, bool] = {}  # name or folder → whether it is a folder
        for name in names:
            head, separator, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            found[prefix + head + separator if separator else name] = bool(separator)
        entries = [entry for entry in found.items() if entry[0] > token]
        chosen = entries[:size]
        return {
            "kind": "storage#objects",
            "items": [self.describe(bucket, name) for name, is_folder in chosen if not is_folder],
            "prefixes": [name for name, is_folder in chosen if is_folder],
            **({"nextPageToken": chosen[-1][0]} if len(entries) > size else {}),
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Objects

    def do_GET(self) -> None:
        self._guard(self._get)

    def do_POST(self) -> None:
        self._guard(self._post)

    def do_PUT(self) -> None:
        self._guard(self._post)

    def do_DELETE(self) -> None:
        self._guard(self._delete)

    def log_message(self, *_: object) -> None:
        """In silence."""

    def _guard(self, work: Any) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = url.path.removeprefix("/upload").removeprefix("/download").removeprefix("/storage/v1/b/")
        bucket, _, rest = path.partition("/")
        name = unquote(rest.removeprefix("o").removeprefix("/"))
        try:
            status, headers, data = work(unquote(bucket), name, query, body)
        except AnswerError as error:
            status, headers = error.status, {}
            data = json.dumps({"error": {"code": status, "message": str(error)}}).encode()
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _get(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if name and query.get("alt") == "media":
            generation, data = self.store.get(bucket, name)
            headers = {"X-Goog-Generation": str(generation)}
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
                return 206, headers, data[int(asked[1]) : int(asked[2]) + 1]
            return 200, headers, data
        if name:
            return 200, {}, json.dumps(self.store.describe(bucket, name)).encode()
        page = self.store.page(
            bucket,
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            token=query.get("pageToken", ""),
            size=int(query.get("maxResults", _PAGE)),
        )
        return 200, {}, json.dumps(page).encode()

    def _post(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        only_new = query.get("ifGenerationMatch") == "0"
        match query.get("uploadType"):
            case "multipart":
                boundary = self.headers["Content-Type"].partition('boundary="')[2].rstrip('"').encode()
                _, metadata, rest = body.split(b"--" + boundary + b"\n", 2)
                data = rest.partition(b"\n\n")[2].removesuffix(b"\n--" + boundary + b"--")
                name = json.loads(metadata.partition(b"\n\n")[2])["name"]
                return 200, {}, json.dumps(self.store.put(bucket, name, data, only_new=only_new)).encode()
            case "resumable" if "upload_id" not in query:
                upload = f"upload-{len(self.store.uploads)}"
                self.store.uploads[upload] = (bucket, json.loads(body)["name"], only_new, bytearray())
                where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o"
                return 200, {"Location": f"{where}?uploadType=resumable&upload_id={upload}"}, b""
        bucket, name, only_new, data_so_far = self.store.uploads[query["upload_id"]]
        data_so_far += body
        if len(data_so_far) < int(self.headers["Content-Range"].rpartition("/")[2]):
            return 308, {"Range": f"bytes=0-{len(data_so_far) - 1}"}, b""
        return 200, {}, json.dumps(self.store.put(bucket, name, bytes(data_so_far), only_new=only_new)).encode()

    def _delete(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if "upload_id" not in query:
            self.store.delete(bucket, name)
        return 204, {}, b""


@contextmanager
def gcs_server() -> Iterator[Server]:
    """An empty server. Every bucket exists."""
    handler = type("Handler", (_Handler,), {"store": Objects()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        env = {
            "STORAGE_EMULATOR_HOST": endpoint,
            "FSSPEC_GCS_TOKEN": "anon",
            # Else gcsfs asks Google, through gRPC, what kind of bucket each is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        try:
            yield Server(endpoint=endpoint, env=env)
        finally:
            server.shutdown()
