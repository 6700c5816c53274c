"""A manifest's own columns, and what lies beside videos in tar files: they come along into prediction rows
(``--keep-columns``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from vidray.errors import UsageError
from vidray.flags import require
from vidray.sources.manifest_file import COLUMNS, absolute_uri, extension_of, is_manifest, read_bytes, span_of
from vidray.sources.rows import SPAN, WHOSE, Span, identities
from vidray.sources.sidecars import SidecarTable
from vidray.storage.arrow_file import arrow_file
from vidray.storage.location import Location, locate
from vidray.storage.redaction import public_uri, redact

_FLAG = "--keep-columns"


class KeptColumns:
    """What comes along: columns of the manifests, and from beside videos in tar files what no manifest has."""

    def __init__(self, sources: Sequence[str], names: Sequence[str], *, taken: Collection[str]) -> None:
        """Reads the manifests. CSV has the types that PyArrow infers.

        Args:
            names: the columns, or ``all`` alone: those that mean nothing to us.
            taken: names that rows have for something else.

        Raises:
            UsageError: the name of a column is taken, two manifests have different types in it, or a video stands in
                two rows that differ in it.
            RunError: a store failed.
        """
        tables = [_read(place) for place in map(locate, sources) if is_manifest(place)]
        self._own = {name: None for table in tables for name in table.column_names if name not in COLUMNS}
        self._names, self._has_manifest = list(names), bool(tables)
        wanted = list(self._own) if self._names == ["all"] else self._names
        clashing = [name for name in wanted if name in taken]
        there = "names that prediction rows do not have already; rename it there"
        require(not clashing, _FLAG, ",".join(clashing), there)
        self.of_manifests = _joined(tables, [name for name in wanted if name in self._own])
        """Their columns, and ``uri`` as listings say it, ``start_seconds`` and ``end_seconds``: a row for each video or
        span of one."""
        rest = self._names if self._names == ["all"] else [name for name in wanted if name not in self._own]
        self.sidecars = SidecarTable(rest, taken={*taken, *COLUMNS, *self._own})
        """To be filled by a listing of the sources."""

    def tables(self) -> dict[str, pa.Table]:
        """What was found, once the sources are listed: of ``manifests`` and of ``sidecars``, which have no spans.

        Raises UsageError if there is no such column anywhere.
        """
        beside = self.sidecars.table()
        found = [name for name in (*self.of_manifests.column_names, *beside.column_names) if name not in WHOSE]
        missing = [name for name in self._names if name not in found] if self._names != ["all"] else []
        there = ", ".join(self._own) or "there is none"
        allowed = f"columns that a manifest has: {there}; or beside videos in tar files: cls, txt, keys of .json"
        require(bool(found or self._has_manifest) and not missing, _FLAG, ",".join(missing or self._names), allowed)
        return {"manifests": self.of_manifests, "sidecars": beside}


def _joined(tables: Sequence[pa.Table], wanted: Sequence[str]) -> pa.Table:
    tables = [table.select([*WHOSE, *(name for name in wanted if name in table.column_names)]) for table in tables]
    try:
        kept = pa.concat_tables([_NONE, *tables], promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(f"{_FLAG}: the manifests have different types in a column: {error}") from error
    return _one_each(kept.select([*WHOSE, *wanted]))


_NONE = pa.table({"uri": pa.array([], pa.string()), **{name: pa.array([], pa.float64()) for name in SPAN}})


def _read(manifest: Location) -> pa.Table:
    data = arrow_file(read_bytes(manifest))
    try:
        match extension_of(manifest):
            case ".csv":
                options = pyarrow.csv.ConvertOptions(column_types={"uri": pa.string()}, strings_can_be_null=True)
                table = pyarrow.csv.read_csv(data, convert_options=options)
            case ".parquet":
                table = pq.read_table(data).replace_schema_metadata(None)
            case _:
                table = pyarrow.json.read_json(data)
    except pa.ArrowInvalid as error:
        raise UsageError(f"cannot read the manifest {redact(manifest.uri)}: {error}") from error
    if "uri" not in table.column_names:
        raise UsageError(f"the manifest {redact(manifest.uri)} needs a column 'uri', found {table.column_names}")
    uris = [public_uri(locate(absolute_uri(manifest, uri)).uri) for uri in table["uri"].to_pylist()]
    nothing = [None] * table.num_rows
    bounds = [table[name].to_pylist() if name in table.column_names else nothing for name in SPAN]
    spans = [_span(manifest, number, *row) for number, row in enumerate(zip(*bounds, strict=True), 1)]
    whose = [pa.array(uris, pa.string()), *(pa.array([span[side] for span in spans], pa.float64()) for side in (0, 1))]
    others = [name for name in table.column_names if name not in WHOSE]
    return pa.table([*whose, *table.select(others).columns], [*WHOSE, *others])


def _span(manifest: Location, number: int, start: Any, end: Any) -> Span:
    try:
        return span_of(start, end)
    except ValueError as error:
        raise UsageError(f"row {number} of the manifest {redact(manifest.uri)}: {error}") from error


def _one_each(table: pa.Table) -> pa.Table:
    """The first row of each video or span. Raises UsageError if another differs from it."""
    keys = identities(table).combine_chunks()
    first = pc.index_in(keys, value_set=keys)
    is_first = pc.equal(first, pa.array(range(len(keys)), first.type))
    again = pc.invert(is_first)
    for row, before in zip(table.filter(again).to_pylist(), table.take(first.filter(again)).to_pylist(), strict=True):
        if row != before:
            names = ", ".join(f"{name} {before[name]!r} and {row[name]!r}" for name in row if row[name] != before[name])
            raise UsageError(f"--keep-columns: {row['uri']} stands in two rows that differ: {names}")
    return table.filter(is_first)


def places_of(kept: pa.Table, at: str) -> pa.Table:
    """Whose rows these are, and as the column ``at`` the place of each: what rows that name videos are joined with."""
    whose = [name for name in WHOSE if name in kept.column_names]
    return kept.select(whose).append_column(at, pa.array(range(kept.num_rows), pa.int64()))


def with_kept(rows: pa.Table, kept: pa.Table, at: str) -> pa.Table:
    """Rows with the columns of the place that their column ``at`` says, instead of it; null where it is null."""
    places, rows = rows[at], rows.drop_columns(at)
    for name in kept.column_names:
        if name not in WHOSE:
            rows = rows.append_column(kept.field(name), kept[name].take(places))
    return rows
