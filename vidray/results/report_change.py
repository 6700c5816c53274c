"""What changed since another run, as a section of a report."""

from __future__ import annotations

import duckdb

from vidray.pages.blocks import Bar, Block, Cell, Code, Section, Table, Text
from vidray.pages.words import count, percent
from vidray.results.accuracy import Accuracy
from vidray.results.changes import MARKED, Change, changes, flips
from vidray.results.run_rows import Run

TITLE = "What changed"


def section(db: duckdb.DuckDBPyConnection, run: Run, other: Run | None, right: Accuracy | None = None) -> Section:
    """With the same result key how shares moved, with another which videos have another label, and how
    many are right where that is known."""
    if other is None:
        return Section(
            title=TITLE, blocks=[Text(text="This is the first run of the output: there is nothing before it.")]
        )
    if other.result_key == run.result_key:
        return _moved(changes(db), other)
    return _flipped(db, other, right)


def _moved(found: list[Change], other: Run) -> Section:
    rows: list[list[Cell]] = [
        [
            change.name,
            Bar(share=change.distance, text=f"{change.distance:.2f}", tone="bad" if change.is_marked else ""),
            change.told,
            f"{change.by_chance:.2f}",
            f"{change.num_before:,} and {change.num_after:,}",
        ]
        for change in found
    ]
    head = ["of", "distance", "", "by chance", "videos before and now"]
    blocks: list[Block] = [Table(caption="How far shares moved", head=head, rows=rows)]
    blocks += [_values(change) for change in found if change.distance >= MARKED]
    text = f"Against run {other.run_id}, by the same model and views. Distances are Jensen-Shannon's: 0 is the same, 1 "
    text += f"nothing in common; {MARKED} and more is marked, unless so few videos differ so by chance."
    return Section(title=TITLE, text=text, blocks=blocks)


def _values(change: Change) -> Table:
    rows: list[list[Cell]] = []
    for value, num_before, num_after in change.moved:
        cells: list[Cell] = [value]
        for number, total in ((num_before, change.num_before), (num_after, change.num_after)):
            share = number / max(total, 1)
            cells += [Bar(share=share, text=percent(share)), number]
        rows.append(cells)
    head = [change.name, "share before", "videos", "share now", "videos"]
    return Table(caption=f"What moved most: {change.name}", head=head, rows=rows)


def _flipped(db: duckdb.DuckDBPyConnection, other: Run, right: Accuracy | None) -> Section:
    found = flips(db)
    text = f"Against the model and views of run {other.run_id}, on the objects that both scored."
    if not found.num_common:
        return Section(title=TITLE, text=text, blocks=[Text(text="No object was given a label by both.", tone="warn")])
    told = f"{found.num_changed:,} of {count(found.num_common, 'video')} ({percent(found.share)}) have another label."
    blocks: list[Block] = [Text(text=told)]
    if right is not None:
        blocks += _right(right)
    if found.pairs:
        pairs: list[list[Cell]] = [
            [old, new, num, Bar(share=num / found.num_changed, text=percent(num / found.num_changed))]
            for old, new, num in found.pairs
        ]
        head = ["label before", "label now", "videos", "of the changes"]
        blocks.append(Table(caption="Changes of labels, the most frequent first", head=head, rows=pairs))
        examples: list[list[Cell]] = [
            [f"{old} → {new}", f"{score:.2f} → {now:.2f}", Code(text=uri)]
            for uri, old, score, new, now in found.examples
        ]
        blocks.append(Table(caption="Surest changes", head=["label", "score", "video"], rows=examples))
    return Section(title=TITLE, text=text, blocks=blocks)


def _right(found: Accuracy) -> list[Block]:
    told = found.told[0].upper() + found.told[1:] + "."
    if not found.num_known:
        return [Text(text=told, tone="warn")]
    rows: list[list[Cell]] = []
    for label, num, old, new in found.labels:
        bars = [Bar(share=right / num, text=percent(right / num)) for right in (old, new)]
        rows.append([label, num, *bars])
    head = ["right label", "videos", "right before", "right now"]
    return [
        Text(text=told),
        Table(caption="How often each label is found, what moved most first", head=head, rows=rows),
    ]
