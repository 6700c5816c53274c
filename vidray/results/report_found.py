"""What a run found: labels, how sure the model is of them, and videos to look at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import duckdb

from vidray.pages.blocks import Bar, Block, Card, Cards, Cell, Histogram, Section, Span, Strip, Table, Text
from vidray.pages.strips import decode_strip, strip_sandbox
from vidray.pages.words import count, file_name, percent
from vidray.progress import format_bytes
from vidray.results.read import read_part
from vidray.sandbox.sandbox import Sandbox
from vidray.sources.rows import SPAN, time_range_of
from vidray.storage.store import Store

_NUM_LABELS, _NUM_MORE = 20, 400
_NUM_CARDS = 6
_MAX_SPANS = 60
_DETAILS = (
    "uri",
    "etag",
    "size_bytes",
    "top_k",
    "timeline",
    "segments",
    "duration_seconds",
    "codec",
    "width",
    "height",
    *SPAN,
)


def section(db: duckdb.DuckDBPyConnection, store: Store, *, with_frames: bool) -> Section:
    """Shares and scores of labels, then the least and the most certain videos."""
    ((num_ok, num_labels),) = db.execute(
        "SELECT count(*), count(DISTINCT label) FROM after WHERE status = 'ok'"
    ).fetchall()
    if not num_ok:
        return Section(title="What was found", blocks=[Text(text="No video was scored.", tone="warn")])
    if not num_labels:
        text = f"{count(num_ok, 'video')} with an embedding and no label (--no-labels). vidray similar compares them."
        return Section(title="What was found", text=text, blocks=[])
    least = db.execute(f"{_PLACES} ORDER BY score, uri LIMIT {_NUM_CARDS}").fetchall()
    most = db.execute(
        f"""SELECT part, place, label, score FROM ({_PLACES}
        QUALIFY row_number() OVER (PARTITION BY label ORDER BY score DESC, uri) = 1)
        ORDER BY score DESC, uri LIMIT {_NUM_CARDS}"""
    ).fetchall()
    with strip_sandbox() if with_frames else nullcontext() as sandbox:
        blocks: list[Block] = [
            _labels(db, num_ok, num_labels),
            Cards(
                title="Least certain", note="The lowest scores. Look here first.", cards=_cards(store, least, sandbox)
            ),
            Cards(title="Most certain", note="The highest score of a label each.", cards=_cards(store, most, sandbox)),
        ]
    text = f"{count(num_ok, 'video')} with {count(num_labels, 'label')}."
    return Section(title="What was found", text=text, blocks=blocks)


_PLACES = "SELECT part, place, label, score, uri FROM after WHERE status = 'ok'"


def _labels(db: duckdb.DuckDBPyConnection, num_ok: int, num_labels: int) -> Table:
    bins = ", ".join(f"count(*) FILTER (least(floor(score * 10), 9) = {number})" for number in range(10))
    found = db.execute(
        f"""SELECT label, count(*) AS num, median(score), [{bins}] FROM after WHERE status = 'ok'
        GROUP BY label ORDER BY num DESC, label LIMIT {_NUM_LABELS + _NUM_MORE}"""
    ).fetchall()
    rows: list[list[Cell]] = []
    for label, number, median, counts in found:
        told = ", ".join(f"{at / 10:.1f}: {some:,}" for at, some in enumerate(counts) if some)
        histogram = Histogram(shares=[some / max(counts) for some in counts], text=f"videos by score from {told}")
        share = number / num_ok
        rows.append([label or "", number, Bar(share=share, text=percent(share)), histogram, float(median)])
    left = num_labels - len(rows)
    return Table(
        caption="Labels, the most frequent first",
        head=["label", "videos", "share", "scores from 0 to 1", "median score"],
        rows=rows[:_NUM_LABELS],
        more=rows[_NUM_LABELS:],
        more_title=f"{len(rows) - _NUM_LABELS:,} more labels" + (f", and {left:,} that are rarer" if left else ""),
    )


def _cards(store: Store, places: Sequence[tuple[Any, ...]], sandbox: Sandbox | None) -> list[Card]:
    return [_card(_row(store, part, place), sandbox) for part, place, *_ in places]


def _row(store: Store, part: str, place: int) -> dict[str, Any]:
    return read_part(store, part, _DETAILS).slice(place, 1).to_pylist()[0]


def _card(row: dict[str, Any], sandbox: Sandbox | None) -> Card:
    top_k = [Bar(share=min(max(one["score"], 0.0), 1.0), text=one["label"]) for one in (row["top_k"] or [])[:3]]
    facts = [f"{row['duration_seconds']:.1f} s"] if row["duration_seconds"] is not None else []
    facts += [f"{row['width']} × {row['height']}"] if row["width"] else []
    facts += [text for text in (row["codec"], format_bytes(row["size_bytes"]) if row["size_bytes"] else None) if text]
    spans = _spans(row)
    name = "windows" if row["segments"] else "times"
    return Card(
        title=file_name(row["uri"]),
        uri=row["uri"],
        strip=_strip(row, sandbox),
        facts=[" · ".join(facts)] if facts else [],
        top_k=top_k,
        spans=spans,
        duration_seconds=max([row["duration_seconds"] or 0.0, *(span.end_seconds for span in spans), 1e-6]),
        spans_title=f"{len(spans)} {name} with a label each",
    )


def _strip(row: dict[str, Any], sandbox: Sandbox | None) -> Strip:
    if sandbox is None:
        return Strip(problem="frames were not asked for")
    return decode_strip(row["uri"], row["etag"], sandbox, time_range=time_range_of(row))


def _spans(row: dict[str, Any]) -> list[Span]:
    """Windows, or what lies between the times of a timeline; at most ``_MAX_SPANS``, evenly chosen from more."""
    entries, start = [], time_range_of(row).start_seconds
    for one in row["segments"] or row["timeline"] or []:
        entries.append((one.get("start_seconds", start), one["end_seconds"], one["label"], one["score"]))
        start = one["end_seconds"]
    entries = entries[:: -(-len(entries) // _MAX_SPANS) or 1]
    numbers: dict[str, int] = {}
    return [
        Span(start_seconds=a, end_seconds=b, label=label, score=score, number=numbers.setdefault(label, len(numbers)))
        for a, b, label, score in entries
    ]
