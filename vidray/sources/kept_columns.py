"""A manifest's own columns, which come along into the prediction rows: ``--keep-columns``."""

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
from vidray.storage.arrow_file import arrow_file
from vidray.storage.location import Location, locate
from vidray.storage.redaction import public_uri, redact


def read_kept(sources: Sequence[str], names: Sequence[str], *, taken: Collection[str]) -> pa.Table:
    """The columns, and ``uri`` as listings say it, ``start_seconds`` and ``end_seconds``: a row for each video or span
    of one. CSV has the types that PyArrow infers.

    Args:
        names: the columns, or ``all`` alone: those that mean nothing to us.
        taken: names that rows have for something else.

    Raises:
        UsageError: no source is a manifest, there is no such column, its name is taken, two manifests have different
            types in it, or a video stands in two rows that differ in it.
        RunError: a store failed.
    """
    flag = "--keep-columns"
    manifests = [place for place in map(locate, sources) if is_manifest(place)]
    require(bool(manifests), flag, ",".join(names), "none, since no source is a manifest (.csv, .jsonl, .parquet)")
    tables = [_read(place) for place in manifests]
    own = {name: None for table in tables for name in table.column_names if name not in COLUMNS}
    wanted = list(own) if list(names) == ["all"] else list(names)
    missing = [name for name in wanted if name not in own]
    require(not missing, flag, ",".join(missing), f"columns that a manifest has: {', '.join(own) or 'there is none'}")
    clashing = [name for name in wanted if name in taken]
    require(not clashing, flag, ",".join(clashing), "names that prediction rows do not have already; rename it there")
    tables = [table.select([*WHOSE, *(name for name in wanted if name in table.column_names)]) for table in tables]
    try:
        kept = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(f"{flag}: the manifests have different types in a column: {error}") from error
    return _one_each(kept.select([*WHOSE, *wanted]))


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


def with_kept(rows: pa.Table, kept: pa.Table) -> pa.Table:
    """Rows that name videos or spans, with the columns of theirs appended; null where there are none."""
    places = pc.index_in(identities(rows), value_set=identities(kept).combine_chunks())
    for name in kept.column_names[len(WHOSE) :]:
        rows = rows.append_column(kept.field(name), kept[name].take(places))
    return rows
