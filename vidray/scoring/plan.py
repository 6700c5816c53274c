"""Which run to work on, and what it has to do: the one place that decides between resuming, starting and stopping.

A run is its ``plan.parquet``: the videos in a fixed order, cut into shards, with the configuration in the footer. It is
created once, by a conditional write; whoever loses that race works on the winner's plan.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from vidray.errors import UsageError
from vidray.scoring import history, output
from vidray.scoring.output import Shards
from vidray.scoring.plan_rows import PlanRows
from vidray.sources.signed_urls import without_secrets
from vidray.storage.redaction import public_uri
from vidray.storage.store import Store


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


def config_id(source: tuple[str, ...], result_key: str) -> str:
    """A hash of the sources (in any order, without secrets) and the result key."""
    text = json.dumps([sorted(map(public_uri, source)), result_key])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run and the rows it has to score."""

    header: RunHeader
    rows: PlanRows
    is_resumed: bool = False

    @property
    def shards(self) -> Shards:
        """How the rows fall into parts."""
        num_rows = self.rows.num_rows + self.header.num_forgotten
        return Shards(num_rows=num_rows, rows_per_part=self.header.rows_per_part)

    def rows_of(self, shard: int) -> pa.Table:
        """Its rows of the plan."""
        return self.rows.between(*self.shards.bounds(shard))


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


def commit_plan(store: Store, plan: Plan) -> Plan:
    """Create the run's plan.parquet; if another driver was first with this run id, adopt its plan."""
    path = history.run_file(plan.header.run_id, "plan.parquet")
    stored = output.parquet_stream(map(without_secrets, plan.rows.tables()), plan.rows.schema, asdict(plan.header))
    try:
        store.create(path, stored)
    except FileExistsError:
        winner = load_plan(store, plan.header.run_id)
        _check_same(winner.header, source=plan.header.source, result_key=plan.header.result_key)
        return winner
    return plan


def load_plan(store: Store, run_id: str) -> Plan:
    """Read a run's plan back. Raises an exception of pyarrow, KeyError, TypeError or ValueError if it is damaged."""
    rows = PlanRows(store.read(history.run_file(run_id, "plan.parquet")))
    for _ in rows.tables():  # what is damaged shows here, and not in the middle of a run
        pass
    header = RunHeader(**{**rows.metadata, "source": tuple(rows.metadata["source"])})
    return Plan(header=header, rows=rows, is_resumed=True)
