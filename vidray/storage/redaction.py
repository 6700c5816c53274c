"""What of a URI names an object, and what is a secret that opens it.

An object keeps its identity when its signature or token changes. So tables, plans and messages get the public URI: no
``user:password@``, and none of the parameters with which S3, GCS, Azure and CloudFront sign a URL. Only ``http`` URIs
have parameters; in all others ``?`` is a plain character of the object's key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_plus

_ALWAYS = frozenset({"access_token", "awsaccesskeyid", "googleaccessid", "key-pair-id", "sig", "signature", "token"})
_PREFIXES = ("x-amz-", "x-goog-")
_AZURE = {
    *("se", "sp", "sv", "sr", "ss", "srt", "st", "spr", "sip", "si", "sdd", "ses"),
    *("skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid"),
}
_BESIDE = {"sig": frozenset(_AZURE), "signature": frozenset({"expires", "policy"})}
"""Parameters that belong to a signature. Their names are so short or common that alone they may name an object."""

_extra: frozenset[str] = frozenset()

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = re.compile(r"(?i)\b((?:https?|ftp|sftp|ssh|smb|webhdfs)://)[^/?#\s@]*@")
_URL_IN_TEXT = re.compile(r"(?i)\bhttps?://[^\s'\"<>)\]]+|\b(?:ftp|sftp|ssh|smb|webhdfs)://[^/\s]*@")


def configure(parameters: Sequence[str]) -> None:
    """Further names of parameters that are secret, for this process (``--secret-parameters``)."""
    global _extra
    _extra = frozenset(name.lower() for name in parameters)


def public_uri(uri: str) -> str:
    """The URI without credentials and signature: the identity of what it names."""
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return uri
    uri = _USER.sub(r"\1", uri, count=1)
    if scheme[1].lower() not in ("http", "https") or "?" not in uri:
        return uri
    base, _, query = uri.partition("?")
    query, hash_mark, fragment = query.partition("#")
    parameters = query.split("&")
    names = {_name(parameter) for parameter in parameters}
    secret = _ALWAYS | _extra | {name for signature, beside in _BESIDE.items() if signature in names for name in beside}
    kept = [p for p in parameters if _name(p) not in secret and not _name(p).startswith(_PREFIXES)]
    return base + ("?" + "&".join(kept) if kept else "") + hash_mark + fragment


def redact(text: str) -> str:
    """A message in which no URL has credentials or parameters: a redirect may have secrets of any name."""
    return _URL_IN_TEXT.sub(lambda match: _without_query(match[0]), text)


def _without_query(url: str) -> str:
    base, has_query, _ = _USER.sub(r"\1", url, count=1).partition("?")
    return f"{base}?…" if has_query else base


def is_url(uri: str) -> bool:
    """True unless it is a local path."""
    return _SCHEME.match(uri) is not None


def _name(parameter: str) -> str:
    return unquote_plus(parameter.partition("=")[0]).lower()
