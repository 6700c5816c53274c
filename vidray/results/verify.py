"""``vidray verify``: checks a whole output, and changes nothing.

For every run: is its plan readable, is every part there, does each hold just the videos that the plan says, with the
columns that it should have, and do the run's keys name the same rows? And over all runs: has a version of an object
more than one ``ok`` row of one result key?
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from vidray.errors import RunError
from vidray.scoring import output
from vidray.scoring.history import KEYS_SCHEMA, is_finished, keys_of, run_file, run_files
from vidray.scoring.output import PREDICTION_SCHEMA, part_path, sealed_shards
from vidray.scoring.plan import Plan, load_plan
from vidray.scoring.plan_rows import kept_columns
from vidray.storage.arrow_file import arrow_file
from vidray.storage.failures import describe
from vidray.storage.store import Store

_NUM_THREADS = 8
_DAMAGED = (pa.ArrowException, KeyError, ValueError, TypeError)
"""What reading a file raises that is not what was written."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check that an output holds what its runs say: parts against plans and keys, row by row. Reads only."""

    output: Annotated[str, tyro.conf.arg(metavar="URI")]
    """The folder that vidray score wrote to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was looked at, and what is wrong with it."""

    num_runs: int
    num_parts: int
    num_rows: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        found = f"{len(self.problems)} problems" if self.problems else "nothing is wrong"
        counts = f"{self.num_runs:,} runs, {self.num_parts:,} parts, {self.num_rows:,} rows: {found}"
        return "\n".join([*self.problems, counts])


def verify(config: VerifyConfig) -> Verification:
    """Check an output.

    Raises:
        RunError: there is no run in it.
    """
    store = Store(config.output)
    runs = run_files(store)
    if not runs:
        raise RunError(f"{store.uri} holds no run of vidray score")
    checks = [_RunCheck(store, run, files) for run, files in sorted(runs.items())]
    problems = [problem for check in checks for problem in check.problems()]
    keys = pa.concat_tables([KEYS_SCHEMA.empty_table(), *(table for check in checks for table in check.keys)])
    strangers = set(output.count_parts(store)) - set(runs)
    problems += [f"predictions/run={run} has parts, but _runs/{run} is gone" for run in sorted(strangers)]
    problems += _double_rows(keys)
    return Verification(
        num_runs=len(runs),
        num_parts=sum(len(check.keys) for check in checks),
        num_rows=keys.num_rows,
        problems=tuple(problems),
    )


def _double_rows(keys: pa.Table) -> Iterator[str]:
    good = keys.filter(pc.equal(keys["status"], "ok"))
    num_double = good.num_rows - pc.count_distinct(good["key"]).as_py()
    if num_double:
        yield f"{num_double} ok rows are of a version and a result key that another ok row has too"


class _RunCheck:
    """One run."""

    def __init__(self, store: Store, run: str, files: set[str]) -> None:
        self._store, self._run, self._files = store, run, files
        self.keys: list[pa.Table] = []
        """Of each part that could be read, once ``problems`` has been asked for."""

    def problems(self) -> Iterator[str]:
        """What is wrong, each on a line that names the file."""
        if "plan.parquet" not in self._files:
            yield f"{run_file(self._run, 'plan.parquet')} is missing"
            return
        try:
            plan = load_plan(self._store, self._run)
        except _DAMAGED as error:
            yield f"{run_file(self._run, 'plan.parquet')} cannot be read: {describe(error)}"
            return
        there = sealed_shards(self._store, self._run)
        if is_finished(self._files):
            for shard in sorted(set(range(plan.shards.count)) - there):
                yield f"{part_path(self._run, shard)} is missing; the next run of vidray score does its rows again"
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for found in pool.map(lambda shard: list(self._part_problems(plan, shard)), sorted(there)):
                yield from found
        if is_finished(self._files):
            yield from self._key_problems(are_all_there=len(there) == plan.shards.count)

    def _part_problems(self, plan: Plan, shard: int) -> Iterator[str]:
        path = part_path(self._run, shard)
        if shard >= plan.shards.count:
            yield f"{path} is no part of the plan, which has {plan.shards.count}"
            return
        try:
            table = pq.read_table(arrow_file(self._store.read(path)))
            self.keys.append(keys_of(table))
        except _DAMAGED as error:
            yield f"{path} cannot be read: {describe(error)}"
            return
        fields = [*PREDICTION_SCHEMA, *map(plan.rows.schema.field, kept_columns(plan.rows.schema))]
        expected = {field.name: field.type for field in fields}
        wrong = [field.name for field in table.schema if expected.get(field.name) != field.type]
        if wrong:
            yield f"{path} has columns that are not as they should be: {', '.join(wrong)}"
        start, stop = plan.shards.bounds(shard)
        names = [*output.VIDEO, "attempts"]
        if output.with_spans(table).select(names).to_pylist() != plan.rows_of(shard).select(names).to_pylist():
            yield f"{path} holds other videos than rows {start} to {stop - 1} of the plan"

    def _key_problems(self, *, are_all_there: bool) -> Iterator[str]:
        path = run_file(self._run, "keys.parquet")
        if "keys.parquet" not in self._files:
            yield f"{path} is missing"
            return
        names = ["key", "status", "attempts"]
        keys = output.read_columns(self._store, path, names).sort_by([("key", "ascending")])
        found = pa.concat_tables([KEYS_SCHEMA.empty_table(), *self.keys]).select(names).sort_by([("key", "ascending")])
        if are_all_there and not keys.equals(found):
            yield f"{path} names other rows than the parts of its run hold"
