"""Stores for tests, each a real server in a process of its own on a free loopback port.

Run as a script (``python tests/support/servers.py [SECONDS]``) it is the S3 server, which waits so long before it
answers a read: it prints its port, and ends when its input does.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A running server."""

    endpoint: str
    """``http://127.0.0.1:<port>``"""
    env: dict[str, str]
    """The environment variables with which any process reaches it."""


@contextmanager
def s3_server(*, delay_seconds: float = 0.0) -> Iterator[Server]:
    """An S3 server (moto) that honours conditional writes, atomically.

    Args:
        delay_seconds: before each answer to a read.
    """
    command = [sys.executable, __file__, str(delay_seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        endpoint = f"http://127.0.0.1:{port}"
        env = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield Server(endpoint=endpoint, env=env)
    finally:
        process.kill()
        process.wait()


def find_azurite() -> str | None:
    """The emulator's program, where ``scripts/azurite.sh`` installs it or on the path; None if it is not installed."""
    local = REPOSITORY / "node_modules" / ".bin" / "azurite-blob"
    return str(local) if local.exists() else shutil.which("azurite-blob")


@contextmanager
def azure_server(program: str) -> Iterator[Server]:
    """Azure Blob storage (Azurite), in memory."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck"]
    process = subprocess.Popen(
        [program, *options, "--disableTelemetry"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "AZURITE_ACCOUNTS": f"vidraytest:{key}"},
    )
    try:
        endpoint = _wait_for_address(process)
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName=vidraytest;AccountKey={key};BlobEndpoint={endpoint}/vidraytest;"
        )
        yield Server(endpoint=endpoint, env={"AZURE_STORAGE_CONNECTION_STRING": connection})
    finally:
        process.kill()
        process.wait()


def _wait_for_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if match := re.search(r"successfully listen\w* (?:at|on) (http://127\.0\.0\.1:\d+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop the server
            return match[1]
    raise RuntimeError("the server did not start: " + "".join(lines))


def serve_s3(delay_seconds: float) -> None:
    """Serves S3 until standard input ends, as it does when the parent process dies."""
    from moto.moto_server import werkzeug_app
    from moto.moto_server.utilities import RegexConverter
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections, as S3 does

        def log_request(self, *_: object) -> None:
            pass

    class AnyKey(RegexConverter):
        def __init__(self, url_map, *items):
            super().__init__(url_map, *items)
            self.regex = f"(?s:{self.regex})"  # moto answers 404 for keys with a newline, S3 takes them

    werkzeug_app.RegexConverter = AnyKey
    application = DomainDispatcherApplication(create_backend_app)
    writing = threading.Lock()

    def one_write_at_a_time(environ, start_response):
        # moto looks whether an object exists and then writes it, without a lock; S3 does both in one step.
        if environ["REQUEST_METHOD"] in ("PUT", "POST"):
            with writing:
                return application(environ, start_response)
        time.sleep(delay_seconds)
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, one_write_at_a_time, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve_s3(float((sys.argv[1:] or ["0"])[0]))
