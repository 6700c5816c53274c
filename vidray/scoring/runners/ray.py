"""The Ray runner. Its graph, on one screen: plan rows ─> decode actors (CPU) ─> predict actors (GPU) ─> rows back.

Two rules keep every row exactly once through the death of any actor or node. Each stage gives one output block for one
input block, so that the replay of a task cannot differ in its number of blocks; and the driver keys rows by plan row
and asks again for what is missing. (Ray loses and doubles rows where a replayed task yields several blocks of other
sizes: hence ``target_max_block_size = None``.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from vidray.cluster import Cluster, connected, explain, read_cluster
from vidray.errors import UsageError
from vidray.flags import parse_pool
from vidray.scoring.config import CPUS_PER_PREDICTOR, ScoreConfig
from vidray.scoring.runners.base import UNKNOWN_LOSS, Loss, MakeStages, Stages
from vidray.types import ViewConfig

BLOCK_BYTES = 128 * 1024**2
"""Views in one block, about: the unit of memory and of retry."""
MAX_ROWS_PER_BLOCK = 64
"""A block costs the driver and its actors some 50 ms of CPU, whatever is in it: 3.4 ms a video with 16 rows, 1.7 with
32. The more predictors, the more blocks come to the one driver."""
MAX_ROWS_PER_STREAM_BLOCK = 4
"""Streamed videos in one block: they may be hours long, and a block is what is done again when its actor dies."""
BLOCKS_PER_READ_TASK = 64
READ_CPUS = 0.05
DECODERS_PER_READ_TASK = 32
"""A read task gives some 3,000 rows a second. One more than needed runs ahead, and is a process to start; unlimited,
Ray started as many as READ_CPUS allows, and the first rows of 40,000 came after 49 seconds instead of 13."""

_DECODE_SHARE = 0.75
"""Of what two operators may take of the store: Ray Data keeps half of it for both, and gives the rest to who asks."""
_MIN_STORE_BYTES = 256 * 1024**2
"""With less, Ray Data, which guesses the size of blocks at first, lets one task run at a time."""


class RayRunner:
    """Implements ``Runner`` on Ray Data: on the cluster that was named, else on a Ray that is started here."""

    def __init__(self, config: ScoreConfig, view: ViewConfig, make_stages: MakeStages) -> None:
        self._config, self._view, self._make_stages = config, view, make_stages
        self._connection = contextlib.ExitStack()
        self._is_connected = False

    def device(self) -> Literal["cpu", "cuda"]:
        """See ``Runner.device``. What an autoscaler may bring counts."""
        if self._config.device != "auto":
            return self._config.device
        return "cuda" if self._cluster().max_gpus >= 1 else "cpu"

    def run(self, rows: pa.Table, *, alone: bool = False) -> Generator[pa.Table, None, None]:
        """See ``Runner.run``."""
        layout = make_layout(self._config, self._view, self._cluster(), num_rows=rows.num_rows)
        if alone:
            layout = dataclasses.replace(layout, rows_per_block=1)
        stages = self._make_stages(layout.threads_per_predictor)
        # Ray aborts the process if it is shut down while it executes.
        with contextlib.closing(stream(rows, stages, layout, stall_timeout=self._config.stall_seconds)) as tables:
            yield from tables

    def _cluster(self) -> Cluster:
        if not self._is_connected:
            self._connection.enter_context(connected(self._config.ray_address))
            self._is_connected = True
        return read_cluster()

    def why_lost(self, row: int) -> Loss:
        """See ``Runner.why_lost``."""
        return UNKNOWN_LOSS

    def close(self) -> None:
        """See ``Runner.close``."""
        self._connection.close()


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """How many actors a stage gets, and what each one takes of the cluster."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float = 0.0
    calls_per_actor: int = 1
    waiting_per_actor: int = 2
    """Blocks that are sent to an actor before it has room for them."""

    def strategy(self) -> ActorPoolStrategy:
        """As Ray Data wants it: a fixed pool starts whole, a growing one with its minimum."""
        return ActorPoolStrategy(
            min_size=self.min_size,
            max_size=self.max_size,
            max_concurrent_calls_per_actor=self.calls_per_actor,
            enable_true_multi_threading=self.calls_per_actor > 1,  # else Ray Data lets one call at a time into a stage
            max_tasks_in_flight_per_actor=self.calls_per_actor + self.waiting_per_actor,
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the work runs: two pools, or one that does both, and the size of a block."""

    decode: ActorPool | None
    """None: the predictors decode too, as in a streaming run."""
    predict: ActorPool
    rows_per_block: int
    threads_per_predictor: int | None
    max_store_bytes: float = math.inf
    """How much of Ray's store the views may take; decoders wait when it is full."""


def make_layout(config: ScoreConfig, view: ViewConfig, cluster: Cluster, *, num_rows: int) -> Layout:
    """Size the pools to the cluster, and refuse at once what could never start.

    Ray waits half an hour, in silence, for an actor that fits on no node; so the minimum of both pools is checked here.
    """
    on_gpu = config.device == "cuda" or (config.device == "auto" and cluster.max_gpus >= 1)
    if config.precision == "fp16" and not on_gpu:
        raise UsageError("--precision fp16 needs a GPU; on a CPU take fp32 or bf16")
    predict = _predict_pool(config, cluster, on_gpu=on_gpu)
    threads = None if on_gpu else max(1, int(cluster.num_cpus) // predict.max_size)
    if view.span == "stream":
        return _stream_layout(config, predict, cluster, num_rows=num_rows, threads=threads)
    decode = _decode_pool(config, cluster, on_gpu=on_gpu)
    _check_fits(decode, predict, cluster)
    num_bytes = view.num_bytes
    rows = max(1, min(MAX_ROWS_PER_BLOCK, BLOCK_BYTES // num_bytes, num_rows // (6 * decode.max_size)))
    return Layout(
        decode=decode,
        predict=predict,
        rows_per_block=rows,
        threads_per_predictor=threads,
        max_store_bytes=math.inf if on_gpu else _store_bytes(decode, predict, block_bytes=rows * num_bytes),
    )


def _store_bytes(decode: ActorPool, predict: ActorPool, *, block_bytes: int) -> float:
    """Enough for two blocks in each actor, and one that waits for each predictor.

    On CPUs decoders share the cores with the network: to run ahead gains nothing, and Ray would let them fill half of
    its store, which is memory that the machine has to find and to clear. Before a GPU it is a buffer.
    """
    num_blocks = 2 * decode.max_size + 3 * predict.max_size
    return max(_MIN_STORE_BYTES, num_blocks * block_bytes / _DECODE_SHARE)


def _predict_pool(config: ScoreConfig, cluster: Cluster, *, on_gpu: bool) -> ActorPool:
    if on_gpu:
        # No CPU of its own: decoders that came first could otherwise hold all CPUs of the GPU's node for ever.
        low, high = parse_pool(config.predictors or "") or (1, max(1, int(cluster.max_gpus)))
        return ActorPool(min_size=low, max_size=high, num_cpus=0, num_gpus=1, calls_per_actor=2)
    low, high = parse_pool(config.predictors or "") or (max(1, int(cluster.num_cpus) // CPUS_PER_PREDICTOR),) * 2
    return ActorPool(min_size=low, max_size=high, num_cpus=0.4, calls_per_actor=2, waiting_per_actor=1)


def _decode_pool(config: ScoreConfig, cluster: Cluster, *, on_gpu: bool) -> ActorPool:
    cpus = 1.0 if on_gpu and cluster.max_cpus >= 2 else 0.5

    def default(num_cpus: float) -> int:
        # Beside a model on CPUs half of them decode: which stage is slower depends on the model; threads share fairly.
        return max(1, int((num_cpus - READ_CPUS) / cpus)) if on_gpu else max(1, int(num_cpus) // 2)

    low, high = parse_pool(config.decoders or "") or (default(cluster.num_cpus), default(cluster.max_cpus))
    return ActorPool(min_size=low, max_size=high, num_cpus=cpus, calls_per_actor=2)


def _stream_layout(
    config: ScoreConfig, predict: ActorPool, cluster: Cluster, *, num_rows: int, threads: int | None
) -> Layout:
    """One pool: every actor has the decoders of its videos with it, and is called once for each video at a time."""
    num_videos = config.streams_per_worker(threads)
    pool = dataclasses.replace(predict, num_cpus=0 if predict.num_gpus else 0.9, calls_per_actor=num_videos)
    _check_fits(None, pool, cluster)
    rows = max(1, min(MAX_ROWS_PER_STREAM_BLOCK, num_rows // (4 * num_videos * pool.max_size)))
    return Layout(decode=None, predict=pool, rows_per_block=rows, threads_per_predictor=threads)


def _check_fits(decode: ActorPool | None, predict: ActorPool, cluster: Cluster) -> None:
    decode = decode or ActorPool(min_size=0, max_size=0, num_cpus=0)
    need_cpus = decode.min_size * decode.num_cpus + predict.min_size * predict.num_cpus + READ_CPUS
    need_gpus = predict.min_size * predict.num_gpus
    if need_cpus <= cluster.max_cpus and need_gpus <= cluster.max_gpus:
        return
    raise UsageError(
        f"the cluster has {cluster.max_cpus:g} CPUs and {cluster.max_gpus:g} GPUs at most; {decode.min_size} decoders "
        f"and {predict.min_size} predictors need {need_cpus:g} CPUs and {need_gpus:g} GPUs, and would wait for ever. "
        "Lower --decoders and --predictors (MIN:MAX lets a pool grow with the cluster), or take --device cpu"
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


def make_graph(rows: pa.Table, stages: Stages, layout: Layout) -> ray.data.Dataset:
    """The dataset of a run, not yet executed. Decode and predict are two operators, each a pool of actors; where the
    stages have no ``decode``, predict is all."""
    dataset = _plan_dataset(rows, layout)
    for stage, pool in ((stages.decode, layout.decode), (stages.predict, layout.predict)):
        if stage is not None and pool is not None:
            cls = _refusing_late(stage.cls)
            dataset = dataset.map_batches(cls, fn_constructor_kwargs=stage.kwargs, **_placement(layout, pool))
    return dataset


def _refusing_late(cls: type) -> type:
    """The same stage, but a UsageError of its constructor is raised with the first block: Ray prints a page for an
    actor that could not be made, and tries it again.
    """

    class Stage:
        def __init__(self, **kwargs: Any) -> None:
            self._refusal: UsageError | None = None
            try:
                self._stage = cls(**kwargs)
            except UsageError as error:
                self._refusal = error

        def __call__(self, block: pa.Table) -> pa.Table:
            if self._refusal is not None:
                raise self._refusal
            return self._stage(block)

    Stage.__name__ = Stage.__qualname__ = cls.__name__  # what Ray calls the operator and its actors
    return Stage


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
        "compute": pool.strategy(),
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
    # As IPC bytes: pickling a slice would take the whole table along, in every task.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    data = sink.getvalue().to_pybytes()
    metadata = BlockMetadata(num_rows=rows.num_rows, size_bytes=len(data), exec_stats=None)
    return ReadTask(lambda: [pa.ipc.open_stream(data).read_all()], metadata)
