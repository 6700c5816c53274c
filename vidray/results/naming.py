"""Where texts name some videos: by their URIs, in any spelling that a report or a summary may give them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from vidray.storage.location import locate
from vidray.storage.redaction import public_uri

REMOVED = "(forgotten)"
"""Stands in a text where a name was."""


class Naming:
    """Finds the names of some videos."""

    def __init__(self, uris: Iterable[str]) -> None:
        """``uris``: as a user types them."""
        self._asked = {uri: public_uri(locate(uri).uri) for uri in uris}
        self._uris = {*self._asked.values(), *map(public_uri, self._asked)}
        self._values = pa.array(sorted(self._uris), pa.string())
        spellings = {spelling for uri in self._uris for spelling in _spellings(uri)}
        self._spellings = sorted(spellings, key=len, reverse=True)

    def are_in(self, uris: pa.ChunkedArray) -> pa.ChunkedArray:
        """Whether each URI of a table is one of them."""
        return pc.is_in(uris, self._values)

    def not_among(self, found: set[str]) -> list[str]:
        """The URIs as typed of those that are not in ``found``."""
        return [typed for typed, uri in self._asked.items() if uri not in found and public_uri(typed) not in found]

    def is_in_text(self, text: str) -> bool:
        """Whether a text names one of them."""
        return any(spelling in text for spelling in self._spellings)

    def without(self, values: Any) -> Any:
        """Plain values of JSON, without the names: entries of lists go, other texts get ``REMOVED`` in their place."""
        match values:
            case dict():
                return {key: self.without(value) for key, value in values.items()}
            case list():
                return [
                    self.without(value) for value in values if not (isinstance(value, str) and self._is_name(value))
                ]
            case str():
                for spelling in self._spellings:
                    values = values.replace(spelling, REMOVED)
                return values
            case _:
                return values

    def _is_name(self, text: str) -> bool:
        """Also of a relative path that was a source."""
        relative = text.removeprefix("./")
        return any(uri == text or ("://" not in text and uri.endswith(f"/{relative}")) for uri in self._uris)


def _spellings(uri: str) -> Sequence[str]:
    encoded = (uri, unquote(uri), quote(uri, safe="/:"), quote(uri, safe=""), quote(uri, safe="/:?&=%"))
    return [form for one in encoded for form in (one, html.escape(one))]
