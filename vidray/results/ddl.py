"""The statements that make the same tables in other engines: ``vidray query --ddl athena|spark``.

Written without what one of them lacks: no QUALIFY, no macros. For Athena lists are unnested field by field, because its
versions differ in what they make of a list of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

import pyarrow as pa

from vidray.results.read import IDENTITY, VERSION
from vidray.results.views import NAMED_COLUMNS, literal, quoted

Engine = Literal["athena", "spark"]

_NESTED = ("label", "score", "top_k", "timeline", "segments", "embedding")
_ENTRY = "start_seconds, end_seconds, label, score"


def ddl(engine: Engine, uri: str, schema: pa.Schema) -> str:
    """Statements over the Parquet of an output, each with a semicolon.

    Args:
        uri: the output.
        schema: of all its rows.
    """
    place = f"{uri.rstrip('/')}/predictions/"
    make_table, unnest, view, quote = _ENGINES[engine]

    def columns(names: Iterable[str]) -> str:
        return ", ".join(name if re.fullmatch("[a-z_][a-z_0-9]*", name) else quoted(name, quote) for name in names)

    simple = columns(name for name in schema.names if name not in _NESTED)
    described = columns(name for name in NAMED_COLUMNS if name in schema.names)
    queries = {
        "predictions": _predictions(columns(schema.names)),
        "failures": f"SELECT {simple}\nFROM predictions WHERE status <> 'ok'",
        "timeline": unnest("timeline"),
        "segments": unnest("segments"),
        "moments": _MOMENTS,
        "embeddings": f"SELECT {described}\nFROM predictions WHERE embedding IS NOT NULL",
    }
    views = [f"{view} {name} AS\n{query};" for name, query in queries.items()]
    return "\n\n".join([make_table(place, schema), *views])


def _predictions(columns: str) -> str:
    return f"""SELECT {columns}
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY {IDENTITY}
        ORDER BY version_planned_at DESC, CASE status WHEN 'ok' THEN 0 ELSE 1 END, attempts DESC) AS place
    FROM (
        SELECT *, max(coalesce(planned_at, scored_at)) OVER (PARTITION BY {VERSION}) AS version_planned_at
        FROM all_attempts) AS versions) AS ranked
WHERE place = 1"""


_MOMENTS = """SELECT uri, min(start_seconds) AS start_seconds, max(end_seconds) AS end_seconds, label,
       max(score) AS score, avg(score) AS mean_score
FROM (
    SELECT *, sum(is_first) OVER (PARTITION BY uri, result_key, label ORDER BY start_seconds) AS moment
    FROM (
        SELECT *, CASE WHEN start_seconds > coalesce(max(end_seconds) OVER (
            PARTITION BY uri, result_key, label ORDER BY start_seconds
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) THEN 1 ELSE 0 END AS is_first
        FROM segments WHERE score >= 0.5) AS windows) AS numbered
GROUP BY uri, result_key, label, moment"""


def _athena_table(place: str, schema: pa.Schema) -> str:
    return f"CREATE EXTERNAL TABLE all_attempts (\n{_columns(schema)}\n)\nSTORED AS PARQUET\nLOCATION {literal(place)};"


def _spark_table(place: str, schema: pa.Schema) -> str:
    place = re.sub("^s3://", "s3a://", place)
    options = f"OPTIONS (path {literal(place)}, recursiveFileLookup 'true')"
    return f"CREATE OR REPLACE TEMPORARY VIEW all_attempts (\n{_columns(schema)}\n)\nUSING parquet\n{options};"


def _columns(schema: pa.Schema) -> str:
    return ",\n".join(f"  {quoted(field.name, '`')} {_hive(field.type)}" for field in schema)


def _hive(kind: pa.DataType) -> str:
    """The name of a type; of one that Hive lacks, the nearest."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"array<{_hive(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{','.join(f'{field.name}:{_hive(field.type)}' for field in kind)}>"
    for is_kind, name in _HIVE:
        if is_kind(kind):
            return name
    return "string"


_HIVE: list[tuple[Callable[[pa.DataType], bool], str]] = [
    (pa.types.is_boolean, "boolean"),
    (lambda kind: kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16()), "int"),
    (pa.types.is_integer, "bigint"),
    (pa.types.is_float32, "float"),
    (pa.types.is_floating, "double"),
    (pa.types.is_timestamp, "timestamp"),
    (pa.types.is_date, "date"),
    (pa.types.is_binary, "binary"),
]


def _athena_unnest(column: str) -> str:
    names = _ENTRY.split(", ")
    arrays = [f"transform({column}, entry -> entry.{name})" for name in names]
    if column == "timeline":  # each begins where the one before ends; the last start is one too many
        arrays[0] = f"ARRAY[coalesce(predictions.start_seconds, 0e0)] || {arrays[1]}"
    listed = ",\n    ".join(arrays)
    return (
        f"SELECT uri, result_key, {', '.join(f'entry.{name}' for name in names)}\n"
        f"FROM predictions CROSS JOIN UNNEST(\n    {listed}) AS entry ({_ENTRY})\n"
        "WHERE entry.end_seconds IS NOT NULL"
    )


def _spark_unnest(column: str) -> str:
    start = "entry.start_seconds"
    if column == "timeline":
        first = "coalesce(start_seconds, 0D)"
        start = f"CASE WHEN place = 0 THEN {first} ELSE timeline[place - 1].end_seconds END AS start_seconds"
    return (
        f"SELECT uri, result_key, {start}, entry.end_seconds, entry.label, entry.score\n"
        f"FROM predictions LATERAL VIEW posexplode({column}) entries AS place, entry"
    )


_ENGINES = {
    "athena": (_athena_table, _athena_unnest, "CREATE OR REPLACE VIEW", '"'),
    "spark": (_spark_table, _spark_unnest, "CREATE OR REPLACE TEMPORARY VIEW", "`"),
}
