"""Tables whose rows are opened through signed URLs: what may be stored of them, and how they are opened again later.

A table's ``uri`` is public; ``path`` has the signature. A stored table has an empty ``path`` in its place, because a
signature is a secret, and would have expired when a run is resumed. A new listing of the same sources has new ones.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def holds_secrets(rows: pa.Table) -> bool:
    """True if some of these rows are opened through signed URLs."""
    return bool(pc.any(_are_signed(rows)).as_py())


def without_secrets(rows: pa.Table) -> pa.Table:
    """Rows as they may be stored: an empty ``path`` in place of a URL that opens its object."""
    if rows["path"].null_count == rows.num_rows:  # nearly always, and ten million URIs take a while to look at
        return rows
    return _with_paths(rows, pc.if_else(_are_signed(rows), pa.scalar(b""), rows["path"]).cast(pa.binary()))


def lacks_secrets(rows: pa.Table) -> bool:
    """True if the sources must be listed again to open what these stored rows name."""
    return bool(pc.any(_is_url(rows.filter(pc.equal(rows["path"], b"")))).as_py())


def paths_of(listed: pa.Table) -> dict[str, bytes | None]:
    """How each URI of a new listing is opened: any table with ``uri`` and ``path``."""
    return dict(zip(listed["uri"].to_pylist(), listed["path"].to_pylist(), strict=True))


def with_secrets(rows: pa.Table, paths: dict[str, bytes | None]) -> pa.Table:
    """Stored rows with the signed URLs of a new listing. What is not listed any more stays without."""
    filled = [
        paths.get(uri) if path == b"" else path
        for uri, path in zip(rows["uri"].to_pylist(), rows["path"].to_pylist(), strict=True)
    ]
    return _with_paths(rows, pa.array(filled, pa.binary()))


def _with_paths(rows: pa.Table, paths: pa.Array | pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index("path"), "path", paths)


def _are_signed(rows: pa.Table) -> pa.ChunkedArray:
    return pc.and_(_is_url(rows), pc.is_valid(rows["path"]))


def _is_url(rows: pa.Table) -> pa.ChunkedArray:
    return pc.match_substring_regex(rows["uri"], r"^[A-Za-z][A-Za-z0-9+.-]*://")
