"""How one command ended, for schedulers and for the next morning: an exit code, and an object in the output.

The exit code is computed anew by every command from what is listed now, so that trying again does not turn a bad night
into a good one. The same JSON is the last line on standard output, because the Ray Jobs API knows only 0 and 1.

    <output>/_verdicts/20261126T020000Z-1a2b3c4d.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vidray.errors import TooManyFailuresError, exit_code
from vidray.scoring.accounting import Untried
from vidray.scoring.plan import RunHeader
from vidray.storage.redaction import redact
from vidray.storage.store import Store

FOLDER = "_verdicts"
_LEAVE_SECONDS = 30.0
OUTPUT_IN_USE = 5
"""The exit code of a command that found another run at work. It says nothing of the night."""
_OUTCOMES = {
    0: "success",
    1: "failed",
    2: "usage_error",
    3: "too_many_failures",
    4: "too_much_changed",
    5: "output_in_use",
    130: "interrupted",
    143: "interrupted",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One command's work. Where it did not end well, the counts are those known by then.

    ``num_listed = num_done + num_scored + num_failed + deferred + given_up`` after a command that ended by itself and
    resumed nothing. (What a resumed run did counts among ``num_scored`` and, by the time of listing, ``num_done``.)
    """

    exit_code: int
    message: str | None = None
    """Why it is not 0."""
    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    runs: tuple[str, ...] = ()
    """Ids of the runs that were worked on to their end."""
    num_listed: int = 0
    num_done: int = 0
    num_scored: int = 0
    num_failed: int = 0
    failed_by_status: dict[str, int] = field(default_factory=dict)
    deferred: Untried = field(default_factory=Untried)
    given_up: Untried = field(default_factory=Untried)
    max_failure_rate: float = 0.0
    report: str | None = None
    """URI of the page on the last run, if one was written."""
    limit: int | None = None
    """With ``--limit``: the command tried some videos, and says nothing of a night. The counts are of these."""

    @property
    def outcome(self) -> str:
        """The exit code in words."""
        return _OUTCOMES.get(self.exit_code, "failed")

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"outcome": self.outcome, **dataclasses.asdict(self)}, ensure_ascii=False)


@dataclass(kw_only=True)
class Tally:
    """What a command knows so far; gives the verdict when it ends."""

    max_failure_rate: float
    limit: int | None = None
    listed: RunHeader | None = None
    """Of the last run that was planned or found: what was listed, and what of it was not to be scored."""
    deferred: Untried = field(default_factory=Untried)
    given_up: Untried = field(default_factory=Untried)
    summaries: list[dict[str, Any]] = field(default_factory=list)

    def check(self) -> None:
        """Raise TooManyFailuresError if too many of the videos tried, or of those listed, have no scores."""
        for summary in self.summaries:
            if summary["outcome"] != "success":
                raise TooManyFailuresError(
                    f"{summary['num_failed']} of {summary['num_planned']} videos failed, more than --max-failure-rate "
                    f"{self.max_failure_rate:g} allows. All rows are written, and the run {summary['run_id']} is "
                    "marked _FAILED; `vidray query --output …` shows which and why"
                )
        if self.listed is None:
            return
        failed = sum(s["num_failed"] for s in self.summaries if s["run_id"] == self.listed.run_id)
        without = failed + self.deferred.count + self.given_up.count
        if without > self.max_failure_rate * self.listed.num_listed:
            raise TooManyFailuresError(
                f"{without} of {self.listed.num_listed} listed videos have no scores, more than --max-failure-rate "
                f"{self.max_failure_rate:g} allows: {failed} failed, {self.deferred} deferred, {self.given_up} given up"
            )

    def verdict(self, error: BaseException | None) -> Verdict:
        """As things stand, with what ended the command."""
        return Verdict(
            exit_code=exit_code(error),
            message=None if error is None else redact(str(error)) or type(error).__name__,
            runs=tuple(summary["run_id"] for summary in self.summaries),
            num_listed=self.listed.num_listed if self.listed else 0,
            num_done=self.listed.num_already_done if self.listed else 0,
            num_scored=sum(summary["num_scored"] for summary in self.summaries),
            num_failed=sum(summary["num_failed"] for summary in self.summaries),
            failed_by_status=_added([summary["failed_by_status"] for summary in self.summaries]),
            deferred=self.deferred,
            given_up=self.given_up,
            max_failure_rate=self.max_failure_rate,
            limit=self.limit,
        )


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total.most_common())


def leave(store: Store, verdict: Verdict) -> None:
    """Put a verdict into the output. What ended the command may also keep this from working, and is not waited for."""
    name = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.json"
    with contextlib.suppress(Exception):
        store.with_deadline(_LEAVE_SECONDS).create(f"{FOLDER}/{name}", verdict.to_json().encode())
