"""A store that fails in a chosen way, on loopback, for the real clients to meet; and a proxy that can go away."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_REASONS = {200: "OK"}


def answer(status: int, *, headers: str = "", body: bytes = b"", length: int | None = None) -> bytes:
    """An HTTP answer. ``length``: what Content-Length promises, if that is not the body's."""
    reason = _REASONS.get(status, "No")
    size = len(body) if length is None else length
    head = f'HTTP/1.1 {status} {reason}\r\nContent-Length: {size}\r\nETag: "e"\r\n{headers}Connection: close\r\n\r\n'
    return head.encode() + body


def replies(data: bytes) -> Callable[[socket.socket], None]:
    """Answers every request with this."""

    def handle(connection: socket.socket) -> None:
        is_head = _receive_request(connection).startswith(b"HEAD ")
        connection.sendall(data[: data.index(b"\r\n\r\n") + 4] if is_head else data)

    return handle


def resets(connection: socket.socket) -> None:
    """Answers with a reset."""
    _receive_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hangs(connection: socket.socket) -> None:
    """Takes the request and says nothing, until the client hangs up."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


def stalls(connection: socket.socket) -> None:
    """Sends the head and a byte, then nothing."""
    _receive_request(connection)
    connection.sendall(_begin(1000) + b"x")
    hangs(connection)


def drips(num_bytes: int, *, every_seconds: float, promised: int | None = None) -> Callable[[socket.socket], None]:
    """Sends a byte at a time. ``promised``: what Content-Length says; more than it sends makes a torn body."""

    def handle(connection: socket.socket) -> None:
        _receive_request(connection)
        connection.sendall(_begin(promised or num_bytes))
        for _ in range(num_bytes):
            time.sleep(every_seconds)
            connection.sendall(b"x")

    return handle


@contextlib.contextmanager
def faulty_server(
    handle: Callable[[socket.socket], None], *, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[float]]]:
    """Yields (``127.0.0.1:<port>``, when each connection came)."""
    listener = socket.create_server(("127.0.0.1", 0))
    times: list[float] = []

    def serve_one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(connection):
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            handle(connection)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                times.append(time.monotonic())
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", times
    finally:
        listener.close()


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Outage:
    """A proxy before a server. It can go away and come back, as a process of its own could not: moto keeps its objects
    in memory."""

    def __init__(self, target: str) -> None:
        """``target``: ``host:port``."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener: socket.socket | None = None
        self._port = free_port()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.come_back()

    def go_away(self) -> None:
        """Refuse connections and break those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Accept connections again."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
                with self._lock:
                    self._open |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def expired_certificate(folder: Path) -> ssl.SSLContext:
    """TLS with a certificate for 127.0.0.1 that is signed by itself and expired yesterday."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=3))
        .not_valid_after(now - datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, encoding = folder / "expired.pem", serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(secret + certificate.public_bytes(encoding))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def _begin(length: int) -> bytes:
    """The head of an object of this length. Azure's client wants to hear its range."""
    return answer(200, headers=f"Content-Range: bytes 0-{length - 1}/{length}\r\n", length=length)


def _receive_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
        data += more
    return data
