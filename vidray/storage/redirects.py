"""Where a web server may send us: to https on public addresses, and nowhere else.

A listed URL is somebody's data. Without this, its server could send each worker on to the metadata service of its own
machine, or to a service of the private network, and have the answer written into a table. A source that is itself on a
private address may redirect within its own kind. aiohttp leaves credentials out when the origin changes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from types import SimpleNamespace
from typing import Any

from vidray.storage.redaction import redact


class RefusedRedirectError(Exception):
    """A server redirects to where nobody should follow. It will do so again."""


def guard() -> Any:
    """An ``aiohttp.TraceConfig`` that raises RefusedRedirectError before such a redirect is followed."""
    import aiohttp

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(_check)
    return config


async def _check(session: Any, context: SimpleNamespace, redirect: Any) -> None:
    import yarl

    source = redirect.response.url
    headers = redirect.response.headers
    target = source.join(yarl.URL(headers.get("Location") or headers.get("URI") or ""))
    if target.scheme not in ("http", "https"):
        raise RefusedRedirectError(f"{_shown(source)} redirects to {target.scheme}:, allowed is https")
    if not await _is_public(source):
        return
    if target.scheme == "http" and (source.scheme == "https" or source.host != target.host):
        raise RefusedRedirectError(f"{_shown(source)} redirects to {_shown(target)}, allowed is https")
    if not await _is_public(target):
        raise RefusedRedirectError(f"{_shown(source)} redirects to a private address: {_shown(target)}")


def _shown(url: Any) -> str:
    return redact(str(url))


async def _is_public(url: Any) -> bool:
    """True if every address of a URL's host is one of the open internet."""
    found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)
