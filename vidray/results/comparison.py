"""What changed from one run of an output to another, as values, for ``vidray compare`` and for callers in Python."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vidray.errors import UsageError
from vidray.pages.words import count, percent
from vidray.results.accuracy import Accuracy, accuracy, known_labels
from vidray.results.changes import Change, Flips, changes, flips
from vidray.results.profile import keep_profile, make_profile
from vidray.results.run_rows import Run, before, choose, compared, database, ended_runs
from vidray.storage.store import Store

DRIFT = ("label", "score", "status")
"""What ``--max-drift`` bounds: what was found. Codecs, durations and sizes tell why it changed; if they change and it
does not, nobody needs to be woken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A run, and how it differs from another."""

    output: str
    """The folder that both lie in."""
    run: Run
    other: Run | None
    """What it is compared with; None: it is the first of its output."""
    changes: tuple[Change, ...]
    """How shares moved; only between runs of one result key."""
    flips: Flips | None
    """Which videos have another label; only between runs of different result keys."""
    accuracy: Accuracy | None
    """How many labels are right, if it was asked for; only between runs of different result keys."""
    profile: pa.Table | None
    """What `write_profile` keeps of the run; None unless it is compared with the run that it is compared with by
    default, so that a profile does not depend on who asked first."""

    def exceeded(self, *, max_drift: float | None = None, max_flips: float | None = None) -> str | None:
        """A line on what changed by more than is allowed; None if nothing did.

        Args:
            max_drift: Jensen-Shannon distance that each of ``DRIFT`` may move, from 0 to 1. A distance that so few
                videos differ by through chance does not count.
            max_flips: share of the videos that may have another label.
        """
        told = [
            f"{one.name} by {one.distance:.2f}, where {max_drift:g} is allowed (--max-drift)"
            for one in self.changes
            if max_drift is not None and one.name in DRIFT and one.is_beyond_chance and one.distance > max_drift
        ]
        if self.flips is not None and max_flips is not None and self.flips.share > max_flips:
            told.append(
                f"the label of {self.flips.num_changed:,} of {count(self.flips.num_common, 'video')} "
                f"({percent(self.flips.share)}), where {percent(max_flips)} is allowed (--max-flips)"
            )
        against = f" since run {self.other.run_id}" if self.other else ""
        return f"run {self.run.run_id} changed too much{against}: {'; '.join(told)}" if told else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "output": self.output,
            "run": _named(self.run),
            "against": _named(self.other) if self.other else None,
            "changes": [dataclasses.asdict(one) | {"is_marked": one.is_marked} for one in self.changes],
            "flips": dataclasses.asdict(self.flips) | {"share": self.flips.share} if self.flips else None,
            "accuracy": dataclasses.asdict(self.accuracy) if self.accuracy else None,
        }


def _named(run: Run) -> dict[str, Any]:
    return {name: run.summary[name] for name in ("run_id", "created_at", "model", "result_key", "outcome")}


def compare_runs(
    output: str, run_id: str | None = None, against: str | None = None, *, labelled: str | None = None
) -> Comparison:
    """Compare a run with an earlier one; only reads.

    Args:
        output: the folder that vidray score wrote to.
        run_id: None: the last run that has ended.
        against: None: the run before it (`run_rows.before`).
        labelled: of two models, tell how often each is right on the videos of this labelled source.

    Raises:
        UsageError: there is no such run, or both are the same, or the labelled source will not do.
        RunError: no run has ended, or a file is damaged, or the store failed.
    """
    store = Store(output)
    runs = ended_runs(store)
    run = choose(runs, run_id, flag="RUN")
    usual = before(runs, run)
    other = usual if against is None else choose(runs, against, flag="RUN")
    if other == run:
        raise UsageError(f"RUN: got {run.run_id!r} twice, allowed are two runs")
    truth = known_labels(run, other, labelled)
    with database(store, compared(runs, other, run)) as db:
        is_alike = other is not None and other.result_key == run.result_key
        moved = tuple(changes(db)) if is_alike else ()
        flipped = flips(db) if other is not None and not is_alike else None
        right = None if truth is None else accuracy(db, truth)
        profile = make_profile(db, run, other, moved, flipped) if other == usual else None
    return Comparison(
        output=store.uri, run=run, other=other, changes=moved, flips=flipped, accuracy=right, profile=profile
    )


def write_profile(comparison: Comparison) -> bool:
    """Keep ``_runs/<run>/profile.parquet``, once. Returns whether it was written now.

    Raises:
        RunError: the store failed.
    """
    if comparison.profile is None:
        return False
    return keep_profile(Store(comparison.output), comparison.run, comparison.profile)
