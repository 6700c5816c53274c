"""What changed from one set of rows to another: pure functions over two tables, ``before`` and ``after``, of DuckDB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from vidray.progress import format_bytes

MARKED = 0.1
"""Jensen-Shannon distance from which a change is worth a look."""

COMPARED = {
    "label": ("label", "label IS NOT NULL"),
    "score": ("least(floor(score * 10), 9)", "score IS NOT NULL"),
    "status": ("status", "true"),
    "codec": ("codec", "codec IS NOT NULL"),
    "duration": ("floor(log2(greatest(duration_seconds, 0.001)))", "duration_seconds IS NOT NULL"),
    "size": ("floor(log2(greatest(size_bytes, 1)))", "size_bytes IS NOT NULL"),
}
"""What is compared: an expression that is the same for what counts as the same, and the rows that have it. Scores are
taken by tenths, durations and sizes by doublings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How the shares of a column's values moved."""

    name: str
    distance: float
    """Jensen-Shannon, from 0 (the same shares) to 1 (nothing in common)."""
    by_chance: float
    """What two samples of these sizes from one distribution differ by, typically."""
    num_before: int
    num_after: int
    moved: Sequence[tuple[str, int, int]]
    """(value, rows before, rows after) of the values whose shares moved most, at most ten."""

    @property
    def is_marked(self) -> bool:
        """True if it is worth a look: beyond ``MARKED``, and beyond what chance does."""
        return self.distance >= MARKED and self.is_beyond_chance

    @property
    def is_beyond_chance(self) -> bool:
        """True if samples of one distribution hardly differ so much."""
        return self.distance > 1.5 * self.by_chance

    @property
    def told(self) -> str:
        """In words."""
        if not self.num_before or not self.num_after:
            return "nothing to compare"
        return "changed" if self.is_marked else "perhaps chance" if self.distance >= MARKED else "about the same"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """Which videos have another label."""

    num_common: int
    """Versions of objects that have a label on both sides."""
    num_changed: int
    pairs: Sequence[tuple[str, str, int]]
    """(label before, label after, videos), the most frequent first."""
    examples: Sequence[tuple[str, str, float, str, float]]
    """(uri, label before, its score, label after, its score), the surest first."""

    @property
    def share(self) -> float:
        """Of the common ones that changed; 0 where there are none."""
        return self.num_changed / max(self.num_common, 1)


def jensen_shannon(before: np.ndarray, after: np.ndarray) -> float:
    """Jensen-Shannon distance, base 2, between the shares of two arrays of counts; 0 where one is empty."""
    if not before.sum() or not after.sum():
        return 0.0
    p, q = before / before.sum(), after / after.sum()
    middle = (p + q) / 2

    def divergence(shares: np.ndarray) -> float:
        some = shares > 0
        return float((shares[some] * np.log2(shares[some] / middle[some])).sum())

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))


def distance_by_chance(num_values: int, num_before: int, num_after: int) -> float:
    """The distance whose square is the mean squared distance of two samples of one distribution of that many values.

    Near equality the divergence is an eighth of chi-squared's statistic, in nats.
    """
    if num_values < 2 or not num_before or not num_after:
        return 0.0
    return min(1.0, math.sqrt((num_values - 1) * (1 / num_before + 1 / num_after) / (8 * math.log(2))))


def changes(db: duckdb.DuckDBPyConnection) -> list[Change]:
    """Of label, score, status, codec, duration and size, between the tables ``before`` and ``after``."""
    return [_change(db, name) for name in COMPARED]


def _change(db: duckdb.DuckDBPyConnection, name: str) -> Change:
    value, condition = COMPARED[name]
    rows = db.execute(
        f"""SELECT coalesce(b.value, a.value), coalesce(b.num, 0), coalesce(a.num, 0)
        FROM (SELECT CAST({value} AS VARCHAR) AS value, count(*) AS num FROM before WHERE {condition} GROUP BY 1) b
        FULL JOIN (SELECT CAST({value} AS VARCHAR) AS value, count(*) AS num FROM after WHERE {condition} GROUP BY 1) a
        ON b.value = a.value ORDER BY 1"""
    ).fetchall()
    counts = np.array([row[1:] for row in rows], np.int64).reshape(-1, 2)
    num_before, num_after = (int(num) for num in counts.sum(axis=0))
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    order = np.argsort(-abs(shares[:, 0] - shares[:, 1]), kind="stable")[:10].tolist()
    return Change(
        name=name,
        distance=jensen_shannon(counts[:, 0], counts[:, 1]),
        by_chance=distance_by_chance(len(rows), num_before, num_after),
        num_before=num_before,
        num_after=num_after,
        moved=[(value_name(name, rows[at][0]), *rows[at][1:]) for at in order],
    )


def value_name(name: str, value: str | None) -> str:
    """How a value of ``changes`` is written: for tenths and doublings their range."""
    if value is None:
        return "none"
    if name == "score":
        return f"{float(value) / 10:.1f} to {(float(value) + 1) / 10:.1f}"
    if name in ("duration", "size"):
        low = 2.0 ** float(value)
        return (
            f"{low:.3g} to {2 * low:.3g} s" if name == "duration" else f"{format_bytes(low)} to {format_bytes(2 * low)}"
        )
    return value


COMMON = """FROM (FROM before WHERE label IS NOT NULL) b JOIN (FROM after WHERE label IS NOT NULL) a
ON b.uri = a.uri AND b.etag IS NOT DISTINCT FROM a.etag
AND b.start_seconds IS NOT DISTINCT FROM a.start_seconds AND b.end_seconds IS NOT DISTINCT FROM a.end_seconds"""
"""Versions of objects that have a label on both sides."""


def flips(db: duckdb.DuckDBPyConnection, *, num_pairs: int = 15, num_examples: int = 12) -> Flips:
    """Which versions of objects in both tables got another label."""
    num_common, num_changed = db.execute(f"SELECT count(*), count(*) FILTER (b.label <> a.label) {COMMON}").fetchall()[
        0
    ]
    pairs = db.execute(
        f"""SELECT b.label, a.label, count(*) AS num {COMMON} WHERE b.label <> a.label
        GROUP BY ALL ORDER BY num DESC, 1, 2 LIMIT {num_pairs:d}"""
    ).fetchall()
    examples = db.execute(
        f"""SELECT a.uri, b.label, b.score, a.label, a.score {COMMON} WHERE b.label <> a.label
        ORDER BY least(a.score, b.score) DESC, a.uri LIMIT {num_examples:d}"""
    ).fetchall()
    return Flips(num_common=num_common, num_changed=num_changed, pairs=pairs, examples=examples)
