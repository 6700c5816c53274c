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
import numpy as np
import pyarrow as pa

from vidray.scoring.history import KEY_SQL
from vidray.scoring.output import ROW
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
    """Where every listed object went: ``num_listed = num_done + rows + deferred + given_up``."""

    num_listed: int
    num_done: int
    """With an ``ok`` row from before."""
    rows: pa.Table
    """To be scored now, sorted by uri (members of a tar file as they lie in it) and span: ``row``, uri, path,
    size_bytes, etag, ``attempts`` (this one included), ``video_attempts`` (of those before), start_seconds, end_seconds
    and tar_member."""
    deferred: Untried
    """The store failed; their time has not come yet."""
    given_up: Untried
    """Not tried again, unless the object changes or ``--retry-failed`` asks for it."""


def account_for(
    listed: pa.Table,
    keys: pa.Table,
    *,
    result_key: str,
    retry_failed: bool,
    max_attempts: int,
    now: datetime.datetime | None = None,
) -> Account:
    """Divide the listed videos by what ``keys`` (KEYS_SCHEMA) know of them.

    New or changed objects (another etag) and new results (another result key) have no key yet.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    # As whole numbers: arithmetic with time zones is an extension of DuckDB's.
    tried_at = keys["last_tried_at"].cast(pa.int64())
    with duckdb.connect() as db:
        db.register("listed", listed)
        db.register("keys", keys.set_column(keys.schema.get_field_index("last_tried_at"), "tried_at", tried_at))
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
        rows = db.sql(
            "SELECT uri, path, size_bytes, etag, (attempts + 1)::INTEGER AS attempts, video_attempts::INTEGER AS "
            "video_attempts, start_seconds, end_seconds, tar_member FROM account WHERE fate = 'score' "
            'ORDER BY coalesce(tar_member.shard, uri), tar_member."offset", uri, '
            "start_seconds NULLS FIRST, end_seconds NULLS LAST"
        ).to_arrow_table()
        (num_done,) = db.sql("SELECT count(*) FROM account WHERE fate = 'done'").fetchall()[0]
        return Account(
            num_listed=listed.num_rows,
            num_done=num_done,
            rows=rows.add_column(0, ROW, pa.array(np.arange(rows.num_rows))),
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
CREATE TEMP TABLE account AS
WITH known AS (
    SELECT key, bool_or(status = 'ok') AS ok, max(attempts) AS attempts, max(video_attempts) AS video_attempts,
           arg_max(status, attempts) AS status, max(tried_at) AS tried_at
    FROM keys GROUP BY key
), keyed AS (
    SELECT *, {KEY_SQL} AS key FROM (SELECT *, $result_key AS result_key FROM listed)
)
SELECT uri, path, size_bytes, etag, start_seconds, end_seconds, tar_member, status, coalesce(attempts, 0) AS attempts,
       coalesce(video_attempts, 0) AS video_attempts,
       CASE
           WHEN known.key IS NULL THEN 'score'
           WHEN ok THEN 'done'
           WHEN $retry_failed THEN 'score'
           WHEN list_contains($store, status) THEN
               CASE WHEN tried_at IS NULL
                      OR $now - tried_at >= $hour * (24 * least({MAX_DELAY_DAYS}, 2 ** (attempts - video_attempts - 1))
                                                     - {SLACK_HOURS})
                    THEN 'score' ELSE 'deferred' END
           WHEN list_contains($transient, status) AND video_attempts < $max_attempts THEN 'score'
           ELSE 'given_up'
       END AS fate
FROM keyed LEFT JOIN known USING (key)
"""
