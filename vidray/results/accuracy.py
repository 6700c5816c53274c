"""How many labels of two models are right, where a labelled source tells the right ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from vidray.errors import UsageError
from vidray.pages.words import count, percent
from vidray.results.changes import COMMON
from vidray.results.run_rows import Run
from vidray.sources.labels import LabelSource, load_labels

_RIGHT_BEFORE, _RIGHT_NOW = "b.label = t.label", "a.label = t.label"
_KNOWN = f"""{COMMON} JOIN truth t ON t.uri = a.uri
AND coalesce(t.start_seconds, 0) = coalesce(a.start_seconds, 0) AND t.end_seconds IS NOT DISTINCT FROM a.end_seconds"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Of two models on the same videos."""

    num_known: int
    """Versions of objects that have a label on both sides, and whose right label is known."""
    num_right_before: int
    num_right_after: int
    num_mended: int
    """Wrong before and right now."""
    num_broken: int
    """Right before and wrong now."""
    num_never_given: int
    """Their right label is one that neither model gave any video: perhaps it is written otherwise."""
    labels: Sequence[tuple[str, int, int, int]]
    """(right label, videos, right before, right now), those first whose share moved most."""

    @property
    def told(self) -> str:
        """In words."""
        if not self.num_known:
            return "of none of these videos the right label is known"
        before, after = (percent(num / self.num_known) for num in (self.num_right_before, self.num_right_after))
        never = f"; {self.num_never_given:,} with a label that neither model gave any video"
        return (
            f"of {count(self.num_known, 'video')} with a known label {before} were right before and {after} are now: "
            f"{self.num_mended:,} mended, {self.num_broken:,} broken{never if self.num_never_given else ''}"
        )


def known_labels(run: Run, other: Run | None, source: str | None) -> pa.Table | None:
    """What `accuracy` between two runs needs to know; None if no source is named. Before any row is read.

    Args:
        source: labelled videos, as `vidray train --source` reads them.

    Raises:
        UsageError: the runs are of one model, or the source is missing or cannot be understood.
        RunError: its store failed.
    """
    if source is None:
        return None
    if other is None or other.result_key == run.result_key:
        against = "there is no other run" if other is None else f"run {other.run_id} is of the same model and views"
        raise UsageError(f"--labelled {source}: it is for two models on the same videos, and {against}")
    return load_labels(LabelSource(source=(source,)))


def accuracy(db: duckdb.DuckDBPyConnection, truth: pa.Table, *, num_labels: int = 10) -> Accuracy:
    """Of the tables ``before`` and ``after``. A label that no model knows counts as wrong.

    Args:
        truth: of `known_labels`.
    """
    db.register("truth", truth)
    conditions = {
        "num_known": "true",
        "num_right_before": _RIGHT_BEFORE,
        "num_right_after": _RIGHT_NOW,
        "num_mended": f"{_RIGHT_NOW} AND NOT {_RIGHT_BEFORE}",
        "num_broken": f"{_RIGHT_BEFORE} AND NOT {_RIGHT_NOW}",
        "num_never_given": "NOT coalesce(t.label IN (SELECT label FROM before UNION SELECT label FROM after), false)",
    }
    counts = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions.values())
    (totals,) = db.execute(f"SELECT {counts} {_KNOWN}").fetchall()
    labels = db.execute(
        f"""SELECT t.label, count(*) AS num, count(*) FILTER ({_RIGHT_BEFORE}) AS old, count(*) FILTER ({_RIGHT_NOW})
        AS new {_KNOWN} GROUP BY 1 ORDER BY abs(new - old) / num DESC, num DESC, 1 LIMIT {num_labels:d}"""
    ).fetchall()
    db.unregister("truth")
    return Accuracy(**dict(zip(conditions, totals, strict=True)), labels=labels)
