"""``vidray status``: who works on an output now, how its last commands ended, and an exit code for a monitor.

It reads a few small objects and writes nothing, so it may be asked from any machine, at any time.
"""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pyarrow as pa

from vidray.errors import RunError
from vidray.flags import parse_age, require, require_deadline, shown_as
from vidray.progress import format_seconds
from vidray.results.run_rows import ended_runs
from vidray.results.table import clean, format_table, screen_width
from vidray.scoring.history import is_finished, run_files
from vidray.scoring.output import sealed_shards
from vidray.scoring.plan import load_plan
from vidray.scoring.verdict import FOLDER, OUTPUT_IN_USE
from vidray.storage.lease import TTL_SECONDS, Holder, read_holder
from vidray.storage.store import Store

_NUM_SHOWN = 7
_NUM_READ_AT_ONCE = 16
"""Verdicts, of the newest that are left."""
_NEXT = {
    0: "vidray report --output {output}",
    3: 'vidray query --output {output} "SELECT status, count(*), any_value(error) FROM failures GROUP BY status"',
    4: "vidray compare --output {output}",
}


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Print who works on an output now, how far it is, and how the last commands ended. Exits with the code of the last
    verdict: of commands with --limit, and of those that found another run at work, it says nothing. Writes nothing,
    needs no Ray."""

    output: Annotated[str, shown_as("URI")]
    """The folder that vidray score writes to."""
    max_age: Annotated[str | None, shown_as("AGE")] = None
    """Exit with code 1 if the last verdict is older: 26h, 90m, 2d. A night with nothing new leaves one too."""
    json: bool = False
    """Print one JSON object instead."""
    store_deadline_seconds: float = 30.0
    """How many seconds to go on trying when the store does not answer."""

    def __post_init__(self) -> None:
        require(self.max_age_seconds != 0, "--max-age", self.max_age, "a time above 0 like 26h, 90m or 2d")
        require_deadline(self.store_deadline_seconds)

    @property
    def max_age_seconds(self) -> float | None:
        """``max_age``; None: any age will do."""
        return None if self.max_age is None else parse_age(self.max_age) or 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class UnfinishedRun:
    """A run that is under way, or was cut off."""

    run_id: str
    planned_at: datetime.datetime
    num_planned: int
    num_written: int
    """Videos in parts that are there."""
    num_parts: int
    num_parts_written: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputStatus:
    """What an output tells of itself at one time."""

    output: str
    asked_at: datetime.datetime
    holder: Holder | None
    unfinished: tuple[UnfinishedRun, ...]
    """The last planned first."""
    verdicts: tuple[dict[str, Any], ...]
    """As they lie in the output, the last first. In an output of version 0.1 made of its last summary."""
    max_age_seconds: float | None = None

    @property
    def silent_seconds(self) -> float | None:
        """How long ago the holder gave a sign of life; None: there is no holder, or it does not tell."""
        return None if self.holder is None else self.holder.silent_seconds(self.asked_at)

    @property
    def is_at_work(self) -> bool:
        """True if somebody holds the output and was heard of in the last minute."""
        return self.holder is not None and (self.silent_seconds or 0.0) <= TTL_SECONDS

    @property
    def telling(self) -> dict[str, Any] | None:
        """The last verdict that says how a night went; None: there is none."""
        return next(filter(_tells, self.verdicts), None)

    @property
    def age_seconds(self) -> float | None:
        """Of the telling verdict."""
        return None if self.telling is None else (self.asked_at - _time(self.telling)).total_seconds()

    @property
    def problems(self) -> list[tuple[int, str]]:
        """What is not as it should be, each with an exit code; the first counts."""
        last, age, most = self.telling, self.age_seconds, self.max_age_seconds
        if last is None or age is None:
            return [(1, "no night has ended here yet")]
        found = [(last["exit_code"], last.get("message") or last["outcome"])] if last["exit_code"] else []
        since = [run.run_id for run in self.unfinished if run.planned_at > _time(last)]
        if since and not self.is_at_work:
            found.append((1, f"run {since[0]} was cut off without a verdict"))
        if most is not None and age > most:
            found.append((1, f"the last verdict is {format_seconds(age)} old, more than {format_seconds(most)}"))
        return found

    @property
    def exit_code(self) -> int:
        """What `vidray status` exits with."""
        return self.problems[0][0] if self.problems else 0

    def to_json(self) -> str:
        """One line."""
        holder = self.holder and asdict(self.holder) | {"silent_seconds": self.silent_seconds}
        told = {
            "output": self.output,
            "exit_code": self.exit_code,
            "problems": [text for _, text in self.problems],
            "asked_at": self.asked_at,
            "is_at_work": self.is_at_work,
            "holder": holder,
            "unfinished": list(map(asdict, self.unfinished)),
            "age_seconds": self.age_seconds,
            "verdicts": self.verdicts,
        }
        return json.dumps(told, ensure_ascii=False, default=datetime.datetime.isoformat)


def read_status(config: StatusConfig) -> OutputStatus:
    """Ask an output.

    Raises:
        RunError: something in it is damaged, or the store failed.
    """
    store = Store(config.output)
    verdicts = _read_verdicts(store) or _of_old_version(store)
    holder = read_holder(store)
    return OutputStatus(
        output=store.uri,
        asked_at=datetime.datetime.now(datetime.UTC),
        holder=holder,
        unfinished=_unfinished(store),
        verdicts=tuple(verdicts),
        max_age_seconds=config.max_age_seconds,
    )


def _read_verdicts(store: Store) -> list[dict[str, Any]]:
    """The last ones, back to one that tells how a night went."""
    paths, found = store.list(FOLDER)[::-1], list[dict[str, Any]]()
    with ThreadPoolExecutor(_NUM_READ_AT_ONCE) as pool:
        while len(found) < len(paths) and not any(map(_tells, found)):
            found += pool.map(lambda path: _verdict(store, path), paths[len(found) : len(found) + _NUM_READ_AT_ONCE])
    return found


def _verdict(store: Store, path: str) -> dict[str, Any]:
    one = store.read_json(path)
    try:
        return {"outcome": "", "limit": None, **one, "time": _time(one).isoformat(), "exit_code": int(one["exit_code"])}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{store.uri_for(path)} cannot be read: it is no verdict") from error


def _tells(verdict: dict[str, Any]) -> bool:
    return verdict["limit"] is None and verdict["exit_code"] != OUTPUT_IN_USE


def _time(verdict: dict[str, Any]) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(verdict["time"])
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _of_old_version(store: Store) -> list[dict[str, Any]]:
    """Version 0.1 left summaries alone."""
    if not any("summary.json" in files for files in run_files(store).values()):
        return []
    summary = ended_runs(store)[-1].summary
    taken = ("outcome", "num_listed", "num_scored", "num_failed", "limit")
    code = 0 if summary["outcome"] == "success" else 3
    more = {"time": summary["created_at"], "exit_code": code, "num_done": summary["num_already_done"]}
    return [{name: summary[name] for name in taken} | more]


def _unfinished(store: Store) -> tuple[UnfinishedRun, ...]:
    files = run_files(store)
    runs = [run for run, names in files.items() if "plan.parquet" in names and not is_finished(names)]
    found = [_how_far(store, run) for run in runs]
    return tuple(sorted(found, key=lambda run: run.planned_at, reverse=True))


def _how_far(store: Store, run_id: str) -> UnfinishedRun:
    try:
        plan = load_plan(store, run_id)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RunError(f"the plan of run {run_id} in {store.uri} cannot be read: {error}") from error
    sealed = sealed_shards(store, run_id)
    return UnfinishedRun(
        run_id=run_id,
        planned_at=datetime.datetime.fromisoformat(plan.header.created_at),
        num_planned=plan.rows.num_rows,
        num_written=sum(plan.rows_of(shard).num_rows for shard in sorted(sealed)),
        num_parts=plan.shards.count,
        num_parts_written=len(sealed),
    )


def format_status(status: OutputStatus) -> str:
    """For the screen; the last line is the next command."""
    lines = [status.output, f"now: {_who(status)}", *map(_how_far_it_is, status.unfinished), ""]
    if status.verdicts:
        lines += [_table(status.verdicts[:_NUM_SHOWN]), ""]
    lines += [f"{'good' if not status.problems else 'not good'}: exit code {status.exit_code}{_ago(status)}"]
    lines += [f"  {clean(text)}" for _, text in status.problems]
    if status.telling and status.telling.get("report"):
        lines += [f"  the page on the last run: {clean(status.telling['report'])}"]
    following = _NEXT.get(status.exit_code, "the vidray score command of this output, which goes on from here")
    if status.is_at_work:
        following = "vidray status --output {output}"
    return "\n".join([*lines, f"next: {following.format(output=shlex.quote(status.output))}"])


def _who(status: OutputStatus) -> str:
    holder, silent = status.holder, status.silent_seconds
    if holder is None:
        return "nobody works on it"
    name = f"process {holder.pid} on {clean(holder.host)}"
    if holder.since is None or silent is None:
        return f"{name} works on it, or died: its version records no times"
    if not status.is_at_work:
        return f"nobody works on it: {name} gave no sign of life for {format_seconds(silent)}"
    busy = format_seconds((status.asked_at - holder.since).total_seconds())
    return f"{name} has worked on it for {busy}, last sign of life {format_seconds(silent)} ago"


def _how_far_it_is(run: UnfinishedRun) -> str:
    parts = f"{run.num_parts_written:,} of {run.num_parts:,} parts"
    planned = f"planned {run.planned_at:%Y-%m-%d %H:%M} UTC"
    return f"  run {run.run_id}: {run.num_written:,} of {run.num_planned:,} videos written ({parts}), {planned}"


def _ago(status: OutputStatus) -> str:
    return "" if status.age_seconds is None else f", the last verdict is {format_seconds(status.age_seconds)} old"


def _table(verdicts: Sequence[dict[str, Any]]) -> str:
    names = {"listed": "num_listed", "done before": "num_done", "scored": "num_scored", "failed": "num_failed"}
    rows = [
        {"ended (UTC)": _time(one).astimezone(datetime.UTC), "exit": one["exit_code"], "outcome": _outcome(one)}
        | {title: one.get(name) for title, name in names.items()}
        | {title: (one.get(name) or {}).get("count") for title, name in _UNTRIED.items()}
        for one in verdicts
    ]
    return format_table(pa.Table.from_pylist(rows), width=screen_width())


_UNTRIED = {"deferred": "deferred", "given up": "given_up"}


def _outcome(verdict: dict[str, Any]) -> str:
    limit = "" if verdict["limit"] is None else f" (--limit {verdict['limit']})"
    return verdict["outcome"].replace("_", " ") + limit
