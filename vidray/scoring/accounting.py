"""What becomes of every listed object: done before, to be scored now, deferred, or given up. Nothing else, and counted.

A failure of the *store* says nothing about the video: it is tried again after 1, 2, 4 … at most 30 days, for ever. A
failure that may be the *video's* is tried again every night until ``--max-attempts`` of them; one that certainly is,
such as ``corrupt``, never.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

import duckdb

from vidray.scoring.history import KEY_SQL
from vidray.types import Status

MAX_DELAY_DAYS = 30
SLACK_HOURS = 12
"""Nights begin a little earlier or later: a delay of one day is over after twelve hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Untried:
    """Listed objects without a good row that this run leaves alone."""

    count: int = 0
    status: str | None = None
    """How most of them ended when they were last tried."""
    example: str | None = None
    """The URI of one of those."""

    def __str__(self) -> str:
        most = f" (mostly {self.status}, such as {self.example})" if self.count else ""
        return f"{self.count:,}{most}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Where every listed object went: ``num_listed = num_done + num_to_score + deferred + given_up``."""

    num_listed: int
    num_done: int
    """With an ``ok`` row from before."""
    num_to_score: int
    """Now."""
    deferred: Untried
    """The store failed; their time has not come yet."""
    given_up: Untried
    """Not tried again, unless the object changes or ``--retry-failed`` asks for it."""


def account_for(
    db: duckdb.DuckDBPyConnection,
    *,
    result_key: str,
    retry_failed: bool,
    max_attempts: int,
    now: datetime.datetime | None = None,
) -> Account:
    """Divide the videos of ``listed`` (MANIFEST_SCHEMA) by what ``keys`` (KEYS_SCHEMA) knows of them: both tables or
    views of ``db``.

    New or changed objects (another etag) and new results (another result key) have no key yet. Afterwards the table
    ``account`` has each video with its ``fate`` (done, score, deferred, given_up), ``attempts`` (this one included),
    ``video_attempts`` (of those before), and the ``status`` of the last.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    db.execute(
        _ACCOUNT,
        {
            "result_key": result_key,
            "retry_failed": retry_failed,
            "store": [status.value for status in Status if status.is_store_failure],
            "transient": [status.value for status in Status if status.is_transient],
            "max_attempts": max_attempts,
            "now": int(now.timestamp() * 1e6),
            "hour": 3_600_000_000,
        },
    )
    counts = dict(db.execute("SELECT fate, count(*) FROM account GROUP BY fate").fetchall())
    return Account(
        num_listed=sum(counts.values()),
        num_done=counts.get("done", 0),
        num_to_score=counts.get("score", 0),
        deferred=_untried(db, "deferred"),
        given_up=_untried(db, "given_up"),
    )


def _untried(db: duckdb.DuckDBPyConnection, fate: Literal["deferred", "given_up"]) -> Untried:
    found = db.execute(
        "SELECT status, count(*) AS n, min(uri) FROM account WHERE fate = ? GROUP BY status ORDER BY n DESC, status",
        [fate],
    ).fetchall()
    if not found:
        return Untried()
    return Untried(count=sum(count for _, count, _ in found), status=found[0][0], example=found[0][2])


_ACCOUNT = f"""
CREATE TABLE account AS
WITH known AS (
    SELECT key, bool_or(status = 'ok') AS ok, max(attempts) AS attempts, max(video_attempts) AS video_attempts,
           arg_max(status, attempts) AS status, max(epoch_us(last_tried_at)) AS tried_at
    FROM keys GROUP BY key
), keyed AS (
    SELECT *, {KEY_SQL} AS key FROM (SELECT *, $result_key AS result_key FROM listed)
)
SELECT keyed.* EXCLUDE (key, result_key, label), status, (coalesce(attempts, 0) + 1)::INTEGER AS attempts,
       coalesce(video_attempts, 0)::INTEGER AS video_attempts,
       CASE
           WHEN known.key IS NULL THEN 'score'
           WHEN ok THEN 'done'
           WHEN $retry_failed THEN 'score'
           WHEN list_contains($store, status) THEN
               CASE WHEN tried_at IS NULL
                      OR $now - tried_at >= $hour * (24 * least({MAX_DELAY_DAYS}, 2 ** (known.attempts
                                                                                        - known.video_attempts - 1))
                                                     - {SLACK_HOURS})
                    THEN 'score' ELSE 'deferred' END
           WHEN list_contains($transient, status) AND known.video_attempts < $max_attempts THEN 'score'
           ELSE 'given_up'
       END AS fate
FROM keyed LEFT JOIN known ON known.key = keyed.key
"""
