"""The Ray runner. Its graph, on one screen: plan rows ─> decode actors (CPU) ─> predict actors (GPU) ─> rows back.

Two rules keep every row exactly once through the death of any actor or node. Each stage gives one output block for one
input block, so that the replay of a task cannot differ in its number of blocks; and the driver keys rows by plan row
and asks again for what is missing. (Ray loses and doubles rows where a replayed task yields several blocks of other
sizes: hence ``target_max_block_size = None``.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from vidray.cluster import Cluster, connected, explain, tell_lack_of_room, wait_for_nodes
from vidray.errors import DeviceLostError, UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.output import ROW
from vidray.scoring.runners.base import UNKNOWN_LOSS, Loss, MakeStages, Stages
from vidray.scoring.runners.ray_layout import READ_CPUS, ActorPool, Layout, make_layout
from vidray.scoring.stages import DECODED_SCHEMA, PREDICTED_SCHEMA
from vidray.types import Status, ViewConfig

_LOST = "lost"
"""Status of rows whose actor lost its device. It never leaves this module."""
_LAST_WORDS_SECONDS = 1.0
"""How long an actor that has lost its device lives on, so that what it gave back arrives."""
BLOCKS_PER_READ_TASK = 64
DECODERS_PER_READ_TASK = 32
"""A read task gives some 3,000 rows a second. One more than needed runs ahead, and is a process to start; unlimited,
Ray started as many as READ_CPUS allows, and the first rows of 40,000 came after 49 seconds instead of 13."""


class RayRunner:
    """Implements ``Runner`` on Ray Data: on the cluster that was named, else on a Ray that is started here."""

    rows_at_once = 2_000_000
    """Some 13 seconds of starting actors for 28 minutes or more: one driver takes 1,200 rows a second at most."""

    def __init__(
        self, config: ScoreConfig, view: ViewConfig, make_stages: MakeStages, *, say: Callable[[str], None]
    ) -> None:
        self._config, self._view, self._make_stages, self._say = config, view, make_stages, say
        self._connection = contextlib.ExitStack()
        self._is_connected = False
        self._lost: dict[int, Loss] = {}

    def device(self) -> Literal["cpu", "cuda"]:
        """See ``Runner.device``. What an autoscaler may bring counts."""
        if self._config.device != "auto":
            return self._config.device
        self._connect()
        return wait_for_nodes(_device, seconds=self._config.wait_for_nodes)

    def run(self, rows: pa.Table, *, alone: bool = False) -> Generator[pa.Table, None, None]:
        """See ``Runner.run``."""
        self._connect()
        layout = wait_for_nodes(
            lambda cluster: make_layout(self._config, self._view, cluster, num_rows=rows.num_rows),
            seconds=self._config.wait_for_nodes,
        )
        if alone:
            layout = dataclasses.replace(layout, rows_per_block=1)
        stages = self._make_stages(layout.threads_per_predictor)
        tell_lack_of_room(num_cpus=layout.min_cpus, num_gpus=layout.min_gpus, say=self._say)
        # Ray aborts the process if it is shut down while it executes.
        with contextlib.closing(stream(rows, stages, layout, stall_timeout=self._config.stall_seconds)) as tables:
            for table in tables:
                yield self._without_lost(table)

    def _without_lost(self, table: pa.Table) -> pa.Table:
        """The rows that were predicted; why the others were lost is kept."""
        is_lost = pc.equal(table["status"], _LOST)
        for row in table.filter(is_lost).select([ROW, "error"]).to_pylist():
            self._lost[row[ROW]] = Loss(Status.MODEL_ERROR, row["error"])
        return table.filter(pc.invert(is_lost))

    def _connect(self) -> None:
        if not self._is_connected:
            self._connection.enter_context(connected(self._config.ray_address))
            self._is_connected = True

    def why_lost(self, row: int) -> Loss:
        """See ``Runner.why_lost``."""
        return self._lost.get(row, UNKNOWN_LOSS)

    def close(self) -> None:
        """See ``Runner.close``."""
        self._connection.close()


def _device(cluster: Cluster) -> Literal["cpu", "cuda"]:
    """What ``--device auto`` is on a cluster: GPUs if it has any, or its autoscaler may bring some."""
    if not cluster.most:
        raise UsageError(
            "the cluster has no node yet and does not say which it may get: take --wait-for-nodes SECONDS, or name "
            "--device cpu or cuda"
        )
    return "cuda" if cluster.max_gpus >= 1 else "cpu"


def strategy(pool: ActorPool) -> ActorPoolStrategy:
    """A pool as Ray Data wants it: a fixed one starts whole, a growing one with its minimum."""
    return ActorPoolStrategy(
        min_size=pool.min_size,
        max_size=pool.max_size,
        max_concurrent_calls_per_actor=pool.calls_per_actor,
        enable_true_multi_threading=pool.calls_per_actor > 1,  # else Ray Data lets one call at a time into a stage
        max_tasks_in_flight_per_actor=pool.calls_per_actor + pool.waiting_per_actor,
    )


def stream(rows: pa.Table, stages: Stages, layout: Layout, *, stall_timeout: float) -> Generator[pa.Table, None, None]:
    """Run plan rows through the stages; tables of predicted rows come back in whatever order they finish.

    Close it before Ray is shut down.
    """
    _configure(layout, stall_timeout)
    # Not iter_batches: its threads may outlive it, and Ray ends a process in which one of them lets go of an object
    # while Ray is being shut down.
    bundles = None
    try:
        bundles = make_graph(rows, stages, layout).iter_internal_ref_bundles()
        for bundle in bundles:
            for entry in bundle.blocks:
                table = ray.get(entry.ref)
                if table.num_rows:  # an empty one has no columns
                    yield table
    except ray.exceptions.RayError as error:
        raise explain(error) from error
    finally:
        del bundles  # with the last reference to it the execution ends
        # Its objects form cycles, which keep actors and their CPUs until Python looks for such: in a large process
        # that waits for these CPUs, never.
        gc.collect()


def make_graph(rows: pa.Table, stages: Stages, layout: Layout) -> ray.data.Dataset:
    """The dataset of a run, not yet executed. Decode and predict are two operators, each a pool of actors; where the
    stages have no ``decode``, predict is all."""
    dataset = _plan_dataset(rows, layout)
    for stage, pool in ((stages.decode, layout.decode), (stages.predict, layout.predict)):
        if stage is not None and pool is not None:
            cls = _guarded(stage.cls, DECODED_SCHEMA if stage is stages.decode else PREDICTED_SCHEMA)
            dataset = dataset.map_batches(cls, fn_constructor_kwargs=stage.kwargs, **_placement(layout, pool))
    return dataset


def _guarded(cls: type, schema: pa.Schema) -> type:
    """The same stage, with two kinds of error handled as Ray needs it.

    A UsageError of its constructor is raised with the first block: Ray prints a page for an actor that could not be
    made, and tries it again. When the actor's device is lost, the rows of its block come back marked as lost, and the
    process ends, since an exception would end the whole run. Ray starts the actor anew, and gives it the blocks that
    waited for this one.
    """

    class Stage:
        def __init__(self, **kwargs: Any) -> None:
            self._refusal: UsageError | None = None
            self._is_lost = False
            try:
                self._stage = cls(**kwargs)
            except UsageError as error:
                self._refusal = error

        def __call__(self, block: pa.Table) -> pa.Table:
            if self._refusal is not None:
                raise self._refusal
            if self._is_lost:
                threading.Event().wait()  # for the end of this process: another one does this block
            try:
                return self._stage(block)
            except DeviceLostError as error:
                self._is_lost = True
                threading.Timer(_LAST_WORDS_SECONDS, os._exit, (1,)).start()
                return _marked_as_lost(block, schema, str(error))

    Stage.__name__ = Stage.__qualname__ = cls.__name__  # what Ray calls the operator and its actors
    return Stage


def _marked_as_lost(block: pa.Table, schema: pa.Schema, why: str) -> pa.Table:
    known = {ROW: block[ROW], "status": pa.repeat(_LOST, block.num_rows), "error": pa.repeat(why, block.num_rows)}
    columns = {field.name: known.get(field.name, pa.nulls(block.num_rows, field.type)) for field in schema}
    return pa.table(columns, schema=schema)


def _plan_dataset(rows: pa.Table, layout: Layout) -> ray.data.Dataset:
    """Plan rows in blocks of ``layout.rows_per_block``."""
    rows_per_block = layout.rows_per_block
    if rows.num_rows <= rows_per_block * BLOCKS_PER_READ_TASK:
        # Straight from here: a read task needs a worker process, a second of start-up and a hundredth of a core
        # (and so do the tasks with which from_arrow looks at its blocks).
        slices = _growing_slices(rows.num_rows, rows_per_block)
        return ray.data.from_blocks([rows.slice(start, size).combine_chunks() for start, size in slices])
    source = PlanSource(rows, rows_per_block=rows_per_block)
    return ray.data.read_datasource(
        source,
        num_cpus=READ_CPUS,
        override_num_blocks=source.num_blocks,
        concurrency=1 + (layout.decode or layout.predict).max_size // DECODERS_PER_READ_TASK,
    )


def _growing_slices(num_rows: int, rows_per_block: int) -> Iterator[tuple[int, int]]:
    """(start, size) of each block. The first are small: until one is decoded the model has nothing to do."""
    start, size = 0, 1
    while start < num_rows:
        yield start, min(size, num_rows - start)
        start, size = start + size, min(2 * size, rows_per_block)


def _placement(layout: Layout, pool: ActorPool) -> dict[str, Any]:
    return {
        # None is a batch per block, which Ray refuses for GPUs; there a batch of a block's size is nearly the same.
        "batch_size": layout.rows_per_block if pool.num_gpus else None,
        "batch_format": "pyarrow",
        "compute": strategy(pool),
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus or None,
        "udf_modifying_row_count": False,
    }


def _configure(layout: Layout, stall_timeout: float) -> None:
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=layout.max_store_bytes
    )
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = stall_timeout
    # Ray's lines would break the live line; the plan stays in its log file, and failures are raised.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


class PlanSource(Datasource):
    """Feeds plan rows lazily: few read tasks, each cut by Ray into blocks of ``rows_per_block`` rows.

    A read task per block would cost the driver a minute for a million rows; a block per task would be too large.
    """

    def __init__(self, rows: pa.Table, *, rows_per_block: int) -> None:
        super().__init__()
        self._rows = rows
        num_blocks = max(1, -(-rows.num_rows // rows_per_block))
        num_tasks = -(-num_blocks // BLOCKS_PER_READ_TASK)
        blocks_per_task = -(-num_blocks // num_tasks)
        self._rows_per_task = rows_per_block * blocks_per_task
        # Ray cuts the rows of every task into num_blocks / num_tasks pieces: it must divide.
        self.num_blocks = num_tasks * blocks_per_task

    def estimate_inmemory_data_size(self) -> int:
        return self._rows.nbytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        starts = range(0, self._rows.num_rows, self._rows_per_task)
        return [_read_task(self._rows.slice(start, self._rows_per_task)) for start in starts]


def _read_task(rows: pa.Table) -> ReadTask:
    # As IPC bytes: pickling a slice would take the whole table along, in every task. The driver holds all of them.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows)
    data = sink.getvalue().to_pybytes()
    metadata = BlockMetadata(num_rows=rows.num_rows, size_bytes=len(data), exec_stats=None)
    return ReadTask(lambda: [pa.ipc.open_stream(data).read_all()], metadata)
