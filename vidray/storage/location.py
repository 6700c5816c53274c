"""From a URI to a `Location`: a file system and a path on it. A URI is parsed once; below, locations travel.

fsspec reads meaning into URIs: ``::`` chains file systems, and some of them take ``?versionId=`` or ``#`` apart. Object
keys hold such characters as plain characters, so a URI is split at the first ``://``, and what follows is the path,
character by character. Only ``http`` URIs keep the meaning that HTTP gives to ``?``, ``#`` and ``%``.
"""

from __future__ import annotations

import datetime
import os
import re
import threading
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
from fsspec.core import strip_protocol

from vidray.errors import UsageError
from vidray.storage import redirects
from vidray.storage.failures import describe
from vidray.storage.retry import CONNECT_TIMEOUT_SECONDS, SILENCE_TIMEOUT_SECONDS

Kind = Literal["local", "s3", "gcs", "azure", "http", "memory", "other"]

MAX_CONNECTIONS = 64
"""Connections to one S3 endpoint per process; botocore's 10 would starve a pool of fetching threads."""

_KINDS: dict[str, Kind] = {
    "file": "local",
    "local": "local",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "http": "http",
    "https": "http",
    "memory": "memory",
}
_OTHERS = ("dbfs", "ftp", "hdfs", "hf", "oci", "oss", "r2", "sftp", "smb", "ssh", "webhdfs")
"""Protocols that fsspec handles. Chaining ones (``zip``, ``simplecache``, ...) are left out on purpose."""
_CANONICAL = {"s3a": "s3", "gcs": "gs"}
_EXTRAS = {"s3": "vidray[s3]", "gcs": "vidray[gcs]", "azure": "vidray[azure]", "http": "fsspec[http]"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_AZURE_HOST = re.compile(r"([^@/]+)@(([^./]+)\.(?:dfs|blob)\.core\.windows\.net)(?:/(.*))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A place on a file system: a file, a folder, or nothing yet."""

    kind: Kind
    fs: Any
    """The fsspec file system, shared by all threads of the process. None where ``kind`` is ``local``."""
    path: str
    """The path as the file system takes it, without a trailing slash: ``bucket/key``, ``/folder/file``, a whole URL."""
    root: str
    """What stands before ``path`` in a URI (``s3://``); for an Azure URI with an account, ``abfss://{}@host/``."""

    @property
    def uri(self) -> str:
        """The URI of this place, as ``locate`` takes it: with what signs it, if anything does."""
        return self.uri_of(self.path)

    def uri_of(self, path: str) -> str:
        """The URI of another path on the same file system."""
        if "{}" in self.root:
            container, _, rest = path.partition("/")
            return self.root.format(container) + rest
        return self.root + path

    def at(self, path: str) -> Location:
        """Another path on the same file system."""
        return Location(kind=self.kind, fs=self.fs, path=path, root=self.root)

    @property
    def parent(self) -> Location:
        """The folder that this place is in."""
        folder = self.path.rpartition("/")[0]
        return self.at(folder or "/" if self.kind == "local" else folder)

    def join(self, relative: str) -> str:
        """The path of something below this place."""
        return f"{self.path.rstrip('/')}/{relative}" if self.path else relative


def locate(uri: str) -> Location:
    """Where a URI points.

    A URI without ``://`` is a local path, made absolute; ``file://`` is stripped, so that local URIs are plain paths.

    Raises:
        UsageError: the protocol is unknown, the package that speaks it is not installed, or its file system cannot be
            set up (without credentials, for instance).
    """
    match = _SCHEME.fullmatch(uri)
    if match is None:
        return Location(kind="local", fs=None, path=os.path.abspath(uri), root="")
    protocol, rest = match[1].lower(), match[2]
    kind = _kind_of(protocol, uri)
    if kind == "local":
        return Location(kind="local", fs=None, path=os.path.abspath(rest), root="")
    protocol = _CANONICAL.get(protocol, protocol)
    if kind == "azure" and (match := _AZURE_HOST.fullmatch(rest)):
        container, host, account, path = match[1], match[2], match[3], match[4] or ""
        fs = _instance("azure", "abfs", account_name=account)
        return Location(kind=kind, fs=fs, path=f"{container}/{path}".rstrip("/"), root=f"{protocol}://{{}}@{host}/")
    fs = _instance(kind, protocol)
    if kind == "memory":
        return Location(kind=kind, fs=fs, path=("/" + rest.strip("/")).rstrip("/"), root="memory:/")
    if kind == "http":
        return Location(kind=kind, fs=fs, path=f"{protocol}://{rest}", root="")
    if kind == "other":
        return Location(kind=kind, fs=fs, path=strip_protocol(f"{protocol}://{rest}"), root=f"{protocol}://")
    return Location(kind=kind, fs=fs, path=rest.rstrip("/"), root=f"{protocol}://")


def split_bucket(path: str) -> tuple[str, str]:
    """``bucket/key`` as (bucket, key). The key is literal: it may hold ``?versionId=`` or start with a slash."""
    bucket, _, key = path.partition("/")
    return bucket, key


def _kind_of(protocol: str, uri: str) -> Kind:
    if protocol in _KINDS:
        return _KINDS[protocol]
    if protocol in _OTHERS:
        return "other"
    allowed = ", ".join(sorted([*_KINDS, *_OTHERS]))
    raise UsageError(f"unknown protocol {protocol!r} in {uri!r}; allowed are local paths and {allowed}")


_instances: dict[tuple[int, str, tuple], Any] = {}
_instances_lock = threading.Lock()


def _instance(kind: Kind, protocol: str, **options: Any) -> Any:
    """One file system object per process and kind, for all its threads. A forked child makes its own."""
    key = (os.getpid(), protocol, tuple(sorted(options.items())))
    if (fs := _instances.get(key)) is not None:
        return fs
    with _instances_lock:
        if key not in _instances:
            _instances[key] = _make(kind, protocol, options)
        return _instances[key]


def _make(kind: Kind, protocol: str, options: dict[str, Any]) -> Any:
    common = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        fs = fsspec.filesystem(protocol, **common, **_settings(kind), **options)
        if kind == "s3":
            _tune_s3(fs)
        elif kind == "azure":
            _tune_azure(fs)
        return fs
    except ImportError as error:
        package = _EXTRAS.get(kind)
        hint = f"pip install '{package}'" if package else str(error)
        raise UsageError(f"{protocol}:// needs a package that is not installed: {hint}") from error
    except Exception as error:
        raise UsageError(f"cannot set up the file system of {protocol}://: {describe(error)}") from error


def _settings(kind: Kind) -> dict[str, Any]:
    """Time-outs on connecting and on silence, none on the whole; and no retries beside those of `storage.retry`."""
    match kind:
        case "s3":
            theirs = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            ours = {
                "max_pool_connections": MAX_CONNECTIONS,
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "read_timeout": SILENCE_TIMEOUT_SECONDS,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
            }
            return {"config_kwargs": {**ours, **theirs}}
        case "azure":
            return {"connection_timeout": CONNECT_TIMEOUT_SECONDS, "read_timeout": SILENCE_TIMEOUT_SECONDS}
        case "gcs":
            return {"requests_timeout": _client_timeout()}
        case "http":
            return {"client_kwargs": {"timeout": _client_timeout(), "trace_configs": [redirects.guard()]}}
    return {}


def _client_timeout() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=SILENCE_TIMEOUT_SECONDS)


def _tune_s3(fs: Any) -> None:
    from aiobotocore.session import AioSession

    # `storage.retry` retries, and knows the deadline; nested loops would wait beyond it.
    fs.retries = 1
    # A page of 1,000 keys takes botocore 55 ms, 40 of them in dateutil's date parser.
    fs.session = AioSession(**fs.kwargs)
    fs.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_timestamp)


def _tune_azure(fs: Any) -> None:
    # adlfs hands time-outs to uploads and downloads alone, and no setting stops azure-core's own retries (three, with
    # pauses of 15 seconds and more). So its client is made once more, with both.
    client = fs.service_client
    fs.service_client = type(client)(
        client.url,
        credential=client.credential,
        retry_total=0,
        connection_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=SILENCE_TIMEOUT_SECONDS,
    )
    fs.service_client.location_mode = client.location_mode


def _parse_timestamp(value: Any) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):  # other services, and headers, write dates differently
        from botocore.utils import parse_timestamp

        return parse_timestamp(value)
