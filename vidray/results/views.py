"""The tables that an analyst finds in an output, as SQL for DuckDB over one table of all rows."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from vidray.errors import UsageError
from vidray.results.read import CURRENT_SQL, IDENTITY

# A window over a year of rows takes a minute, and most rows have no rival. So only rows that share a hash are ranked.
_PREDICTIONS = f"""
WITH repeated AS MATERIALIZED (SELECT hash({IDENTITY}) AS h FROM all_attempts GROUP BY h HAVING count(*) > 1),
     predictions AS NOT MATERIALIZED (SELECT * FROM all_attempts WHERE hash({IDENTITY}) IN (FROM repeated))
SELECT * FROM all_attempts WHERE hash({IDENTITY}) NOT IN (FROM repeated)
UNION ALL BY NAME ({CURRENT_SQL})"""

NAMED_COLUMNS = ("uri", "start_seconds", "end_seconds", "result_key", "model", "embedding")
"""Of the table of embeddings, as far as there are such columns."""

VIEWS = {
    "predictions": _PREDICTIONS,
    "failures": "SELECT * EXCLUDE (label, score, top_k, timeline, segments, embedding) FROM predictions "
    "WHERE status <> 'ok'",
    "timeline": """
SELECT uri, result_key, entry.start_seconds, entry.end_seconds, entry.label, entry.score
FROM (SELECT uri, result_key, unnest(list_transform(timeline, lambda entry, i: {
          'start_seconds': coalesce(timeline[i - 1].end_seconds, start_seconds, 0), 'end_seconds': entry.end_seconds,
          'label': entry.label, 'score': entry.score})) AS entry
      FROM predictions)""",
    "segments": """
SELECT uri, result_key, s.start_seconds, s.end_seconds, s.label, s.score
FROM (SELECT uri, result_key, unnest(segments) AS s FROM predictions)""",
    "embeddings": f"SELECT COLUMNS(lambda name: name IN {NAMED_COLUMNS}) FROM predictions WHERE embedding IS NOT NULL",
}
"""Each view's query, in an order in which they can be made, over a table ``all_attempts``."""

MOMENTS = """
CREATE MACRO moments(min_score := 0.5) AS TABLE
SELECT uri, min(start_seconds) AS start_seconds, max(end_seconds) AS end_seconds, label, max(score) AS score,
       avg(score) AS mean_score
FROM (SELECT *, count(*) FILTER (is_first) OVER (PARTITION BY uri, result_key, label ORDER BY start_seconds) AS moment
      FROM (SELECT *, start_seconds > coalesce(max(end_seconds) OVER (
                          PARTITION BY uri, result_key, label ORDER BY start_seconds
                          ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) AS is_first
            FROM segments WHERE score >= min_score))
GROUP BY uri, result_key, label, moment"""
"""Neighbouring windows with one label, as docs/output.md has it."""

NAMES = (
    "predictions",
    "all_attempts",
    "failures",
    "timeline",
    "segments",
    "moments()",
    "embeddings",
    "runs",
    "verdicts",
    "profiles",
)
"""What can be asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which rows and runs there are, as far as a query is concerned; None: all."""

    model: str | None = None
    result_key: str | None = None
    planned_before: datetime.datetime | None = None
    """With a time zone."""

    @property
    def rows_sql(self) -> str:
        """What holds of the rows."""
        return self._sql("coalesce(planned_at, scored_at)")

    @property
    def runs_sql(self) -> str:
        """What holds of the runs."""
        return self._sql("planned_at")

    @property
    def verdicts_sql(self) -> str:
        """What holds of the commands, which tell neither the model nor the result key."""
        return _before("time", self.planned_before)

    def _sql(self, planned_at: str) -> str:
        same = [
            f"{name} = {literal(value)}"
            for name, value in (("model", self.model), ("result_key", self.result_key))
            if value is not None
        ]
        return " AND ".join([*same, _before(planned_at, self.planned_before)])


EVERYTHING = Choice()


def _before(column: str, time: datetime.datetime | None) -> str:
    return "true" if time is None else f"{column} < TIMESTAMPTZ {literal(time.isoformat())}"


def literal(text: str) -> str:
    """A string in SQL."""
    return quoted(text, "'")


def quoted(name: str, mark: str = '"') -> str:
    """A name in SQL."""
    return mark + name.replace(mark, mark * 2) + mark


def planned_before(night: str) -> datetime.datetime:
    """The end of a day (``2026-11-20``), or the moment after a time (``2026-11-20T06:00``); UTC where it says nothing.

    Raises:
        UsageError: it is neither.
    """
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", night):
            time = datetime.datetime.fromisoformat(night) + datetime.timedelta(days=1)
        else:
            time = datetime.datetime.fromisoformat(night) + datetime.timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--as-of: got {night!r}, allowed is a day or a time, as 2026-11-20 or 2026-11-20T06:00"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
