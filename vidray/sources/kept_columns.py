"""A manifest's own columns, which come along into the prediction rows: ``--keep-columns``."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from vidray.errors import UsageError
from vidray.flags import require
from vidray.sources.manifest_file import COLUMNS, absolute_uri, extension_of, is_manifest, read_bytes
from vidray.storage.location import Location, locate
from vidray.storage.redaction import public_uri, redact


def read_kept(sources: Sequence[str], names: Sequence[str], *, taken: Collection[str]) -> pa.Table:
    """``uri``, as listings say it, and the columns: a row for each uri. CSV has the types that PyArrow infers.

    Args:
        names: the columns, or ``all`` alone: those that mean nothing to us.
        taken: names that rows have for something else.

    Raises:
        UsageError: no source is a manifest, there is no such column, its name is taken, two manifests have different
            types in it, or an object stands in two rows that differ in it.
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
    tables = [table.select(["uri", *(name for name in wanted if name in table.column_names)]) for table in tables]
    try:
        kept = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(f"{flag}: the manifests have different types in a column: {error}") from error
    return _one_each(kept.select(["uri", *wanted]))


def _read(manifest: Location) -> pa.Table:
    data = io.BytesIO(read_bytes(manifest))
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
    return table.set_column(table.column_names.index("uri"), "uri", pa.array(uris, pa.string()))


def _one_each(table: pa.Table) -> pa.Table:
    """The first row of each uri. Raises UsageError if another differs from it."""
    uris = table["uri"].combine_chunks()
    first = pc.index_in(uris, value_set=uris)
    is_first = pc.equal(first, pa.array(range(len(uris)), first.type))
    again = pc.invert(is_first)
    for row, before in zip(table.filter(again).to_pylist(), table.take(first.filter(again)).to_pylist(), strict=True):
        if row != before:
            names = ", ".join(f"{name} {before[name]!r} and {row[name]!r}" for name in row if row[name] != before[name])
            raise UsageError(f"--keep-columns: {row['uri']} stands in two rows that differ: {names}")
    return table.filter(is_first)


def with_kept(rows: pa.Table, kept: pa.Table) -> pa.Table:
    """Rows that have a ``uri``, with the columns of theirs appended; null where there is no such uri."""
    places = pc.index_in(rows["uri"], value_set=kept["uri"].combine_chunks())
    for name in kept.column_names[1:]:
        rows = rows.append_column(kept.field(name), kept[name].take(places))
    return rows
