"""What an output holds, on one screen: videos, labels, failures, nights, and what to type next."""

from __future__ import annotations

import datetime
import shlex

import pyarrow as pa

from vidray.results.session import Session
from vidray.results.table import format_table
from vidray.results.views import literal

_COUNTS = """
SELECT result_key, any_value(model) AS model, status, label, count(*) AS videos, avg(score) AS mean_score,
       max(scored_at) AS scored_at, any_value(error) AS error
FROM predictions GROUP BY result_key, status, label"""
"""The one pass over all rows; all else is asked of what it gives."""
_MODELS = """
SELECT any_value(model) AS model, result_key, sum(videos)::BIGINT AS videos,
       coalesce(sum(videos) FILTER (status = 'ok'), 0)::BIGINT AS ok,
       coalesce(sum(videos) FILTER (label IS NOT NULL), 0)::BIGINT AS with_label, max(scored_at) AS last_scored_at
FROM counts GROUP BY result_key ORDER BY last_scored_at DESC NULLS LAST, result_key"""
_LABELS = """
SELECT label, videos, mean_score FROM counts
WHERE status = 'ok' AND label IS NOT NULL AND result_key = {key} ORDER BY videos DESC, label"""
_FAILURES = """
SELECT status, sum(videos)::BIGINT AS videos, any_value(error) AS for_example FROM counts
WHERE status <> 'ok' AND result_key = {key} GROUP BY status ORDER BY videos DESC, status"""
_NIGHTS = """
SELECT planned_at, outcome, num_planned, num_scored, num_failed, num_deferred, num_given_up
FROM runs ORDER BY planned_at DESC"""
_MOST = 10
"""Rows of each table."""


def overview(session: Session, *, width: int | None) -> str:
    """Labels and failures are those of the model and views that scored last.

    Raises:
        RunError: the store failed.
    """
    session.register("counts", session.run(_COUNTS))
    models = session.run(_MODELS)
    if not models.num_rows:
        return f"{session.uri}: no rows of what was asked for"
    newest = {name: models[name][0].as_py() for name in models.column_names}
    key = literal(newest["result_key"] or "")
    labels = session.run(_LABELS.format(key=key))
    sections = [_headline(session.uri, newest)]
    if models.num_rows > 1:
        sections.append(_section("models; below the one that scored last, --result-key chooses", models, width))
    sections += [
        _section("labels", labels, width),
        _section("without a label" if labels.num_rows else "failed", session.run(_FAILURES.format(key=key)), width),
        _section("runs", session.run(_NIGHTS), width),
        _next(session.uri, newest, labels),
    ]
    return "\n\n".join(section for section in sections if section)


def _headline(uri: str, newest: dict[str, object]) -> str:
    time = newest["last_scored_at"]
    last = f", the last scored {time:%Y-%m-%d %H:%M} UTC" if isinstance(time, datetime.datetime) else ""
    num_videos, num_ok, num_labelled = (int(str(newest[name])) for name in ("videos", "ok", "with_label"))
    found = f"{num_labelled:,} with a label, {num_videos - num_labelled:,} without"
    if _has_no_labels(newest):
        found = f"{num_ok:,} with an embedding and no label (--no-labels), {num_videos - num_ok:,} failed"
    return f"{uri}\n{num_videos:,} videos by {newest['model'] or 'a model'}{last}: {found}"


def _has_no_labels(newest: dict[str, object]) -> bool:
    """True if nobody asked for labels: a video that was scored with some has one."""
    return newest["ok"] != 0 and newest["with_label"] == 0


def _section(title: str, table: pa.Table, width: int | None) -> str:
    if not table.num_rows:
        return ""
    more = f"\n… {table.num_rows - _MOST:,} more" if table.num_rows > _MOST else ""
    return f"{title}\n{format_table(table.slice(0, _MOST), width=width)}{more}"


def _next(uri: str, newest: dict[str, object], labels: pa.Table) -> str:
    if _has_no_labels(newest):
        return (
            f"next: vidray similar --output {shlex.quote(uri)} --duplicates 0.98\n"
            f'      vidray query --output {shlex.quote(uri)} "FROM embeddings" --format parquet --to FILE'
        )
    where = f"label = {literal(labels['label'][0].as_py())}" if labels.num_rows else "status <> 'ok'"
    what = "uri, score" if labels.num_rows else "uri, status, error"
    order = " ORDER BY score DESC" if labels.num_rows else ""
    sql = f"SELECT {what} FROM predictions WHERE {where}{order}"
    return (
        f"next: vidray query --output {shlex.quote(uri)} {_shell_quoted(sql)}\n"
        "      vidray query --examples prints more; --format csv --to FILE takes the rows along"
    )


def _shell_quoted(sql: str) -> str:
    """In double quotes where that will do: SQL has single ones."""
    return shlex.quote(sql) if set(sql) & set('"$`!\\') else f'"{sql}"'
