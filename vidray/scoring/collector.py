"""Gathers predicted rows in whatever order they come, and seals each Parquet part when its rows are all there.

Nothing is taken on trust: a runner may lose rows, double them and change their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidray import monitoring
from vidray.errors import RunError
from vidray.scoring.output import (
    PREDICTION_SCHEMA,
    ROW,
    SCHEMA_VERSION,
    VIDEO,
    Shards,
    parquet_bytes,
    part_path,
    read_columns,
    with_spans,
)
from vidray.scoring.plan_rows import PlanRows, kept_columns
from vidray.sources.rows import SPAN
from vidray.storage.store import Store
from vidray.types import Status

MAX_LOSSES = 3
"""How often a row may be lost before it is given up."""


class Collector:
    """Gathers prediction rows by shard in whatever order they come, and seals each part when its rows are all there.

    It trusts nothing: a row that comes twice counts once, and what never came is named by ``missing_rows``.
    """

    def __init__(
        self,
        *,
        store: Store,
        plan: PlanRows,
        shards: Shards,
        run_id: str,
        sealed: set[int],
        constants: dict[str, Any],
        before_seal: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            constants: columns that say the same in every row of the run.
            before_seal: may refuse by raising.
        """
        self._store = store
        self._constants = constants
        self._before_seal = before_seal
        self._plan = plan
        self._shards = shards
        self._run_id = run_id
        self._seen = np.ones(shards.num_rows, dtype=bool)
        for table in plan.tables():
            self._seen[table[ROW].to_numpy()] = False  # a number without a row needs none
        self._pending: dict[int, list[pa.Table]] = {}
        for shard in sealed:
            start, stop = shards.bounds(shard)
            self._seen[start:stop] = True
        self.num_missing = int(np.count_nonzero(~self._seen))
        """Rows of the plan that have not come yet."""

    def missing_rows(self, *, most: int | None = None) -> np.ndarray:
        """(N,) int64: the numbers of the plan's rows that have not come yet, in order; the first ``most`` of them."""
        return np.flatnonzero(~self._seen)[:most]

    def missing_among(self, numbers: np.ndarray) -> np.ndarray:
        """Those of some numbers whose rows have not come yet."""
        return numbers[~self._seen[numbers]]

    def add(self, table: pa.Table) -> list[pa.Table]:
        """Take rows (PREDICTION_SCHEMA and ``row``); seal what became whole.

        Returns the tables that were not seen before, one per shard touched.
        """
        fresh = self._first_occurrences(table)
        rows = fresh[ROW].to_numpy()
        self._seen[rows] = True
        self.num_missing -= len(rows)
        taken = []
        for shard in np.unique(rows // self._shards.rows_per_part):
            mine = fresh.filter(pa.array(rows // self._shards.rows_per_part == shard))
            self._pending.setdefault(int(shard), []).append(mine)
            taken.append(mine)
            self._seal_if_whole(int(shard))
        return taken

    def _first_occurrences(self, table: pa.Table) -> pa.Table:
        rows = table[ROW].to_numpy()
        first = np.zeros(len(rows), dtype=bool)
        first[np.unique(rows, return_index=True)[1]] = True
        return table.filter(pa.array(first & ~self._seen[rows]))

    def _seal_if_whole(self, shard: int) -> None:
        start, stop = self._shards.bounds(shard)
        if not self._seen[start:stop].all():
            return
        table = pa.concat_tables(self._pending.pop(shard)).sort_by(ROW)
        planned = self._plan.between(start, stop)
        if table[ROW].to_pylist() != planned[ROW].to_pylist():
            raise RunError(
                f"shard {shard} should hold rows {start} to {stop - 1}, but does not: this is a bug of vidray"
            )
        for name, value in self._constants.items():
            scalar = pa.scalar(value, PREDICTION_SCHEMA.field(name).type)
            table = table.append_column(name, pa.repeat(scalar, table.num_rows))
        video_attempts = count_video_attempts(table["status"], planned["video_attempts"])
        table = table.append_column("video_attempts", video_attempts)
        for name in SPAN:
            table = table.append_column(name, planned[name])
        table = table.select(PREDICTION_SCHEMA.names).cast(PREDICTION_SCHEMA)
        for name in kept_columns(planned.schema):
            table = table.append_column(planned.field(name), planned[name])
        self._before_seal()
        seal_part(self._store, self._run_id, shard, table)
        monitoring.record(monitoring.ROWS_SEALED, table.num_rows)


def seal_part(store: Store, run_id: str, shard: int, table: pa.Table) -> None:
    """Create a shard's part, or adopt the one that is there if it holds the same videos.

    A part that is already there is either our own, whose acknowledgement was lost, or another driver's of the same
    run, which is as good. Raises RunError if it holds other videos.
    """
    path = part_path(run_id, shard)
    metadata = {"run_id": run_id, "shard": shard, "num_rows": table.num_rows, "schema_version": SCHEMA_VERSION}
    try:
        store.create(path, parquet_bytes(table, metadata))
    except FileExistsError:
        there = with_spans(read_columns(store, path, VIDEO))
        if there.to_pylist() != table.select(VIDEO).to_pylist():
            raise RunError(
                f"{store.uri_for(path)} is there already and holds other videos than shard {shard} of run {run_id} "
                "should; it was left as it is"
            ) from None


def count_video_attempts(statuses: pa.ChunkedArray, before: pa.ChunkedArray) -> pa.ChunkedArray:
    """``video_attempts`` of rows that ended with these statuses, given those of the attempts before."""
    blameless = pa.array([Status.OK.value, *(status.value for status in Status if status.is_store_failure)])
    speaks_against = pc.invert(pc.is_in(statuses, blameless))
    return pc.add(pc.fill_null(before, 0), pc.cast(speaks_against, pa.int32()))


class LossCounter:
    """Counts how often each row was asked for and did not come back."""

    def __init__(self) -> None:
        self._losses: Counter[int] = Counter()

    def add(self, rows: Iterable[int]) -> list[int]:
        """These rows were lost once more. Returns those that were lost ``MAX_LOSSES`` times by now."""
        rows = [int(row) for row in rows]
        self._losses.update(rows)
        return [row for row in rows if self._losses[row] >= MAX_LOSSES]
