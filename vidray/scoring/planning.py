"""What a fresh run sets out to do: the sources, minus what the output holds, in an order, with numbers.

Nothing here holds all videos as a table: the listing, the keys of the output and what becomes of each video lie in a
scratch folder, and the rows of the plan come from there in their order.

    sources ── listed ─┬─ account: done, score, deferred, given up ── dealt: a number for each to score ── plan rows
    output ──── keys ──┘
"""

from __future__ import annotations

import datetime
import hashlib
import heapq
import secrets
from collections import Counter
from collections.abc import Callable, Iterator

import duckdb
import pyarrow as pa

from vidray.scoring import history, output
from vidray.scoring.accounting import Account, account_for
from vidray.scoring.config import ScoreConfig
from vidray.scoring.output import ROW
from vidray.scoring.plan import Plan, RunHeader
from vidray.scoring.plan_rows import PLAN_SCHEMA, PlanRows
from vidray.sources.kept_columns import KeptColumns, places_of, with_kept
from vidray.sources.manifest import MANIFEST_SCHEMA, stream_sources
from vidray.sources.rows import WHOSE
from vidray.sources.scratch import Scratch, scratch
from vidray.storage.redaction import public_uri
from vidray.storage.store import Store

_LONG = 8
"""Times the median size: an object so large may be as long as many others."""


def plan_fresh(
    store: Store,
    config: ScoreConfig,
    *,
    fingerprint: str,
    view_config: str,
    precision: str,
    result_key: str,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Plan, Account]:
    """List the sources, leave out what the output holds, and give what remains a run. Writes nothing to the store."""
    left: Counter[str] = Counter()
    taken = {*output.PREDICTION_SCHEMA.names, *PLAN_SCHEMA.names}
    kept = KeptColumns(config.source, config.kept_names, taken=taken) if config.keep_columns else None
    with scratch() as work:
        listed = stream_sources(
            config.source,
            extensions=config.extensions,
            left=left,
            sidecars=kept.sidecars if kept else None,
            on_progress=on_progress,
        )
        work.write("listed", listed, MANIFEST_SCHEMA)
        if config.limit is not None:
            sample(work, config.limit)
        num_tar_files, num_in_tar_files = work.db.execute(_COUNT_TAR_FILES).fetchall()[0]
        work.write("keys", history.read_keys(store), history.KEYS_SCHEMA)
        account = account_for(
            work.db, result_key=result_key, retry_failed=config.retry_failed, max_attempts=config.max_attempts
        )
        deal(work.db)
        rows = _plan_rows(work, kept.tables() if kept else {})
    header = RunHeader(
        run_id=config.run_id or new_run_id(),
        source=tuple(map(public_uri, config.source)),
        model=public_uri(config.model),
        fingerprint=fingerprint,
        view_config=view_config,
        result_key=result_key,
        rows_per_part=config.rows_per_part
        or default_rows_per_part(rows.num_rows, chunked=config.is_chunked, embeddings=config.embeddings),
        num_listed=account.num_listed,
        num_already_done=account.num_done,
        num_deferred=account.deferred.count,
        num_given_up=account.given_up.count,
        files_left=dict(left.most_common()),
        num_tar_files=num_tar_files,
        num_in_tar_files=num_in_tar_files,
        limit=config.limit,
        precision=precision,
    )
    return Plan(header=header, rows=rows), account


_COUNT_TAR_FILES = """
SELECT count(DISTINCT tar_member.shard), count(*) FILTER (tar_member.shard <> uri) FROM listed
"""


def _plan_rows(work: Scratch, kept: dict[str, pa.Table]) -> PlanRows:
    """What is to be scored, in the order of its numbers; ``kept``: of `KeptColumns.tables`."""
    columns = [ROW, *(f"account.{name}" for name in PLAN_SCHEMA.names if name != ROW), *map(_at, kept)]
    joined = "account JOIN dealt USING (place)"
    for name, table in kept.items():
        work.db.register(name, places_of(table, _at(name)))
        joined += f" LEFT JOIN {name} ON {_SAME[name]}"
    come_along = [field for table in kept.values() for field in table.schema if field.name not in WHOSE]
    schema = pa.schema([*PLAN_SCHEMA, *come_along])

    def complete(rows: pa.Table) -> pa.Table:
        for name, table in kept.items():
            rows = with_kept(rows, table, _at(name))
        return rows.cast(schema)

    tables = work.read(f"SELECT {', '.join(columns)} FROM {joined} ORDER BY {ROW}")
    return PlanRows.of(map(complete, tables), schema)


def _at(name: str) -> str:
    return f"{name}_at"


_SAME = {
    "manifests": """coalesce(account.tar_member.shard, account.uri) = manifests.uri
    AND account.start_seconds IS NOT DISTINCT FROM manifests.start_seconds
    AND account.end_seconds IS NOT DISTINCT FROM manifests.end_seconds""",
    "sidecars": "account.uri = sidecars.uri",
}
"""What comes along with a video: a manifest that names a tar file speaks of all its members."""


def count_new(rows: PlanRows, *, besides: PlanRows | None) -> tuple[int, int]:
    """How many rows of a plan there are, and their bytes, without the versions of objects that another plan has."""
    with scratch() as work:
        work.write("fresh", rows.tables(), rows.schema)
        work.write("planned", besides.tables() if besides else (), PLAN_SCHEMA if besides is None else besides.schema)
        return work.db.execute(_COUNT_NEW).fetchall()[0]


_COUNT_NEW = """
SELECT count(*), coalesce(sum(size_bytes), 0)::BIGINT
FROM fresh ANTI JOIN planned ON fresh.uri = planned.uri AND fresh.etag IS NOT DISTINCT FROM planned.etag
"""


def sample(work: Scratch, num_videos: int) -> None:
    """Leave so many videos in ``listed``, the same ones each time: those whose URIs have the smallest hashes."""
    chosen = heapq.nsmallest(num_videos, _hashes(work))
    work.db.register("chosen", pa.table({"place": pa.array([place for _, place in chosen], pa.int64())}))
    work.db.execute("CREATE TABLE sampled AS SELECT * FROM listed SEMI JOIN chosen USING (place)")
    work.db.execute("CREATE OR REPLACE VIEW listed AS SELECT * FROM sampled")


def _hashes(work: Scratch) -> Iterator[tuple[bytes, int]]:
    for table in work.read("SELECT uri, place FROM listed"):
        for uri, place in zip(table["uri"].to_pylist(), table["place"].to_pylist(), strict=True):
            yield hashlib.blake2b(uri.encode(), digest_size=8).digest(), place


def deal(db: duckdb.DuckDBPyConnection) -> None:
    """Give each video to score in ``account`` its number, in the table ``dealt``: (place, row).

    Objects of many times the usual size, largest first, are spread over the first half of the run: it would else wait
    at its end for the one long video that happened to come last. All others stay in their order, and members of a tar
    file in theirs: neighbours are fetched together.
    """
    db.execute(_DEAL)


_DEAL = f"""
CREATE TABLE dealt AS
WITH sized AS (
    SELECT place, coalesce(size_bytes, 0) AS size, coalesce(tar_member.shard, uri) AS object,
           tar_member."offset" AS begin
    FROM account WHERE fate = 'score'
), told AS (
    SELECT *, usual > 0 AND size > {_LONG} * usual AS is_long FROM sized, (SELECT median(size) AS usual FROM sized)
), ranked AS (
    SELECT place, is_long, row_number() OVER (
        PARTITION BY is_long ORDER BY CASE WHEN is_long THEN -size END, object, begin, place
    ) - 1 AS rank
    FROM told
), counts AS (
    SELECT count(*) FILTER (is_long) AS num_long, count(*) FILTER (NOT is_long) AS num_usual FROM ranked
)
SELECT place,
       rank + CASE WHEN is_long THEN (rank * num_usual + 2 * num_long - 1) // (2 * num_long)
                   ELSE least(num_long, 2 * rank * num_long // num_usual + 1) END AS {ROW}
FROM ranked, counts
"""
"""Of L long and N usual videos, long one l comes before usual one u if l / 2L <= u / N: each is numbered by its rank
among its kind and by how many of the other kind come before it."""


def new_run_id() -> str:
    """A fresh id: sorts by time, never repeats."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def default_rows_per_part(num_rows: int, *, chunked: bool = False, embeddings: bool = False) -> int:
    """A hundredth of the run, between 50 (small files are slow to query) and 4000 (a crash should cost little).

    Videos that are seen whole may be hours long and their rows large: between 5 and 500, or 50 where each window has an
    embedding, some 5 MB for an hour.
    """
    least, most = (5, 50 if embeddings else 500) if chunked else (50, 4000)
    return min(max(num_rows // 100, least), most)
