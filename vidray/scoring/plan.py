"""Which run to work on, and what it has to do: the one place that decides between resuming, starting and stopping.

A run is its ``plan.parquet``: the videos in a fixed order, cut into shards, with the configuration in the footer. It is
created once, by a conditional write; whoever loses that race works on the winner's plan.
"""

from __future__ import annotations

import datetime
import hashlib
import heapq
import json
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidray.errors import UsageError
from vidray.scoring import history, output
from vidray.scoring.accounting import Account, account_for
from vidray.scoring.config import ScoreConfig
from vidray.scoring.output import Shards
from vidray.sources.kept_columns import KeptColumns
from vidray.sources.manifest import list_sources
from vidray.sources.rows import TAR_MEMBER
from vidray.sources.signed_urls import without_secrets
from vidray.storage.arrow_file import arrow_file
from vidray.storage.redaction import public_uri
from vidray.storage.store import Store

PLAN_SCHEMA = pa.schema(
    [
        (output.ROW, pa.int64()),
        ("uri", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("attempts", pa.int32()),
        ("video_attempts", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("tar_member", TAR_MEMBER),
    ]
)
"""``attempts``: this one included. ``video_attempts``: of those before, the ones that speak against the video."""


_LONG = 8
"""Times the median size: an object so large may be as long as many others."""


@dataclass(frozen=True, kw_only=True)
class RunHeader:
    """What a run was started with. A run is only resumed by a command that asks for the same."""

    run_id: str
    source: tuple[str, ...]
    model: str
    fingerprint: str
    view_config: str
    result_key: str
    rows_per_part: int
    num_listed: int
    num_already_done: int
    """With an ``ok`` row from before. (In plans of older versions: all that were not planned.)"""
    num_deferred: int = 0
    num_given_up: int = 0
    files_left: dict[str, int] = field(default_factory=dict)
    """Files in the folders that do not count as videos, by extension."""
    num_tar_files: int = 0
    num_in_tar_files: int = 0
    """How many of the listed videos are members of so many tar files."""
    num_forgotten: int = 0
    """Planned rows that `vidray forget` has taken out since: the others keep their numbers."""
    limit: int | None = None
    """How many videos were tried out of all that are listed; None: all."""
    precision: str = "fp32"
    created_at: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    @property
    def config_id(self) -> str:
        """Equal for runs that do the same work: same sources, same model, same views."""
        return config_id(self.source, self.result_key)


def kept_columns(rows: pa.Table) -> list[str]:
    """The columns of a plan's rows that come from manifests (``--keep-columns``)."""
    return [name for name in rows.column_names if name not in PLAN_SCHEMA.names]


def _typed(rows: pa.Table) -> pa.Table:
    """PLAN_SCHEMA, and the kept columns as they are."""
    fields = [*PLAN_SCHEMA, *(rows.schema.field(name) for name in kept_columns(rows))]
    return rows.select([field.name for field in fields]).cast(pa.schema(fields))


def config_id(source: tuple[str, ...], result_key: str) -> str:
    """A hash of the sources (in any order, without secrets) and the result key."""
    text = json.dumps([sorted(map(public_uri, source)), result_key])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run and the rows it has to score (PLAN_SCHEMA), in the order of their numbers, of which some may be gone."""

    header: RunHeader
    rows: pa.Table
    is_resumed: bool = False

    @property
    def shards(self) -> Shards:
        """How the rows fall into parts."""
        num_rows = self.rows.num_rows + self.header.num_forgotten
        return Shards(num_rows=num_rows, rows_per_part=self.header.rows_per_part)

    def rows_of(self, shard: int) -> pa.Table:
        """Its rows of the plan."""
        return rows_of_shard(self.rows, self.shards, shard)


def rows_of_shard(rows: pa.Table, shards: Shards, shard: int) -> pa.Table:
    """Those of a plan's rows (sorted by ``row``) whose numbers fall into a shard."""
    start, stop = np.searchsorted(rows[output.ROW].to_numpy(), shards.bounds(shard))
    return rows.slice(start, stop - start)


def find_resumable(store: Store, *, source: tuple[str, ...], result_key: str, run_id: str | None) -> Plan | None:
    """The unfinished run to go on with: ``run_id`` if it is there, else the newest of the same configuration.

    Raises UsageError if ``run_id`` is there with another configuration.
    """
    runs = {run: files for run, files in history.run_files(store).items() if "plan.parquet" in files}
    if run_id is not None:
        if run_id not in runs:
            return None
        plan = load_plan(store, run_id)
        _check_same(plan.header, source=source, result_key=result_key)
        return plan
    unfinished = [run for run, files in runs.items() if not history.is_finished(files)]
    plans = (load_plan(store, run) for run in unfinished)
    same = [plan for plan in plans if plan.header.config_id == config_id(source, result_key)]
    return max(same, key=lambda plan: plan.header.created_at, default=None)


def _check_same(header: RunHeader, *, source: tuple[str, ...], result_key: str) -> None:
    if header.config_id == config_id(source, result_key):
        return
    source = tuple(map(public_uri, source))
    what = "sources" if sorted(header.source) != sorted(source) else "model, views or embeddings"
    got = list(source) if what == "sources" else result_key
    had = list(header.source) if what == "sources" else f"{header.result_key} ({header.model}, {header.view_config})"
    raise UsageError(
        f"--run-id {header.run_id}: this run was started with other {what}: {had}; now asked for: {got}. "
        "Take another --run-id, or leave it out"
    )


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
    """List the sources, leave out what the output holds, and give what remains a run. Writes nothing."""
    left: Counter[str] = Counter()
    taken = {*output.PREDICTION_SCHEMA.names, *PLAN_SCHEMA.names}
    kept = KeptColumns(config.source, config.kept_names, taken=taken) if config.keep_columns else None
    listed = list_sources(
        config.source,
        extensions=config.extensions,
        left=left,
        sidecars=kept.sidecars if kept else None,
        on_progress=on_progress,
    )
    if config.limit is not None:
        listed = sample(listed, config.limit)
    account = account_for(
        listed,
        history.read_keys(store),
        result_key=result_key,
        retry_failed=config.retry_failed,
        max_attempts=config.max_attempts,
    )
    rows = with_long_ones_early(account.rows)
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
        num_tar_files=pc.count_distinct(_shards(listed)).as_py(),
        num_in_tar_files=pc.sum(pc.not_equal(listed["uri"], _shards(listed))).as_py() or 0,
        limit=config.limit,
        precision=precision,
    )
    return Plan(header=header, rows=_typed(kept.added_to(rows) if kept else rows)), account


def _shards(listed: pa.Table) -> pa.ChunkedArray:
    """The tar file that each row is of, or null."""
    return pc.struct_field(listed["tar_member"], "shard")


def with_long_ones_early(rows: pa.Table) -> pa.Table:
    """Objects of many times the usual size, largest first, spread over the first half of the run; all others in order.

    A run would else wait at its end for the one long video that happened to come last.
    """
    sizes = pc.fill_null(rows["size_bytes"], 0).to_numpy()
    usual = np.median(sizes) if len(sizes) else 0
    is_long = (sizes > _LONG * usual) & (usual > 0)
    places = np.empty(len(sizes))
    places[~is_long] = np.linspace(0, 1, np.count_nonzero(~is_long), endpoint=False)
    longs = np.flatnonzero(is_long)
    places[longs[np.argsort(-sizes[longs], kind="stable")]] = np.linspace(0, 0.5, len(longs), endpoint=False)
    dealt = rows.take(pa.array(np.lexsort((~is_long, places))))
    return dealt.set_column(dealt.column_names.index(output.ROW), output.ROW, pa.array(np.arange(len(sizes))))


def sample(listed: pa.Table, num_videos: int) -> pa.Table:
    """So many of the listed videos, the same ones each time: those whose URIs have the smallest hashes."""
    hashes = [hashlib.blake2b(uri.encode(), digest_size=8).digest() for uri in listed["uri"].to_pylist()]
    chosen = heapq.nsmallest(num_videos, range(len(hashes)), key=hashes.__getitem__)
    return listed.take(pa.array(sorted(chosen), pa.int64()))


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


def commit_plan(store: Store, plan: Plan) -> Plan:
    """Create the run's plan.parquet; if another driver was first with this run id, adopt its plan."""
    path = history.run_file(plan.header.run_id, "plan.parquet")
    try:
        store.create(path, output.parquet_bytes(without_secrets(plan.rows), asdict(plan.header)))
    except FileExistsError:
        winner = load_plan(store, plan.header.run_id)
        _check_same(winner.header, source=plan.header.source, result_key=plan.header.result_key)
        return winner
    return plan


def load_plan(store: Store, run_id: str) -> Plan:
    """Read a run's plan back."""
    data = arrow_file(store.read(history.run_file(run_id, "plan.parquet")))
    rows = pq.read_table(data)
    metadata: dict[str, Any] = output.parquet_metadata(rows.schema)
    header = RunHeader(**{**metadata, "source": tuple(metadata["source"])})
    rows = output.with_spans(rows.replace_schema_metadata(None))
    if "video_attempts" not in rows.column_names:  # an older version's: it counted every attempt against the video
        rows = rows.append_column("video_attempts", pc.subtract(rows["attempts"], 1))
    if "tar_member" not in rows.column_names:
        rows = rows.append_column("tar_member", pa.nulls(rows.num_rows, TAR_MEMBER))
    return Plan(header=header, rows=_typed(rows), is_resumed=True)
