"""How a Ray cluster is shared out among decode and predict actors: node by node, never by the sum of its CPUs.

Nothing here imports Ray. What can never start is refused at once, with the numbers: Ray would wait in silence for half
an hour for an actor that fits on no node.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from vidray.cluster import Cluster, Node
from vidray.errors import UsageError
from vidray.flags import parse_pool
from vidray.scoring.config import CPUS_PER_PREDICTOR, ScoreConfig
from vidray.types import ViewConfig

BLOCK_BYTES = 128 * 1024**2
"""Views in one block, about: the unit of memory and of retry."""
MAX_ROWS_PER_BLOCK = 64
"""A block costs the driver and its actors some 50 ms of CPU, whatever is in it: 3.4 ms a video with 16 rows, 1.7 with
32. The more predictors, the more blocks come to the one driver."""
MAX_ROWS_PER_STREAM_BLOCK = 4
"""Streamed videos in one block: they may be hours long, and a block is what is done again when its actor dies."""
READ_CPUS = 0.05
"""What the task takes that reads the plan."""
_SPARE_CPUS = 0.1
"""Of a predictor's share of its node, left for that task."""
_MIN_PREDICT_CPUS, _MIN_DECODE_CPUS = 0.4, 0.5
_DECODE_SHARE = 0.75
"""Of what two operators may take of the store: Ray Data keeps half of it for both, and gives the rest to who asks."""
_MIN_STORE_BYTES = 256 * 1024**2
"""With less, Ray Data, which guesses the size of blocks at first, lets one task run at a time."""


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """How many actors a stage gets, and what each one takes of its node."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float = 0.0
    calls_per_actor: int = 1
    waiting_per_actor: int = 2
    """Blocks that are sent to an actor before it has room for them."""


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

    @property
    def min_cpus(self) -> float:
        """What the actors need without which nothing begins."""
        return sum(pool.min_size * pool.num_cpus for pool in (self.decode, self.predict) if pool is not None)

    @property
    def min_gpus(self) -> float:
        """See ``min_cpus``."""
        return self.predict.min_size * self.predict.num_gpus


def make_layout(config: ScoreConfig, view: ViewConfig, cluster: Cluster, *, num_rows: int) -> Layout:
    """Size the pools to the cluster. Raises UsageError for what could never start."""
    on_gpu = config.device == "cuda" or (config.device == "auto" and cluster.max_gpus >= 1)
    if config.precision == "fp16" and not on_gpu:
        raise UsageError("--precision fp16 needs a GPU; on a CPU take fp32 or bf16")
    threads = None if on_gpu else _threads_per_predictor(config, cluster)
    predict = _predict_pool(config, cluster, threads=threads)
    if view.is_chunked:
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


def _threads_per_predictor(config: ScoreConfig, cluster: Cluster) -> int:
    """CPU threads of one predictor: at most what a model gains from, and never more than a node has."""
    node_cpus = max((int(node.num_cpus) for node in cluster.most), default=1)
    threads = max(1, node_cpus // max(1, node_cpus // CPUS_PER_PREDICTOR))
    if asked := parse_pool(config.predictors or ""):
        threads = min(threads, max(1, int(cluster.max_cpus) // asked[1]))
    return threads


def _predict_pool(config: ScoreConfig, cluster: Cluster, *, threads: int | None) -> ActorPool:
    asked = parse_pool(config.predictors or "")
    if threads is None:
        # No CPU of its own: decoders that came first could otherwise hold all CPUs of the GPU's node for ever.
        low, high = asked or (1, max(1, int(cluster.max_gpus)))
        return ActorPool(min_size=low, max_size=high, num_cpus=0, num_gpus=1, calls_per_actor=2)

    def default(nodes: tuple[Node, ...]) -> int:
        return max(1, sum(int(node.num_cpus) // threads for node in nodes))

    low, high = asked or (default(cluster.nodes), default(cluster.most))
    # Half of its node's share: Ray then spreads predictors over the nodes. The other half decodes.
    cpus = max(_MIN_PREDICT_CPUS, threads / 2 - _SPARE_CPUS)
    return ActorPool(min_size=low, max_size=high, num_cpus=cpus, calls_per_actor=2, waiting_per_actor=1)


def _decode_pool(config: ScoreConfig, cluster: Cluster, *, on_gpu: bool) -> ActorPool:
    def default(nodes: tuple[Node, ...]) -> int:
        if not on_gpu:
            # Beside a model on CPUs half of them decode: which stage is slower depends on the model.
            return max(1, sum(max(1, int(node.num_cpus) // 2) for node in nodes if node.num_cpus >= 1))
        return max(1, sum(int(node.num_cpus) for node in nodes) - 1)  # one for the task that reads the plan

    low, high = parse_pool(config.decoders or "") or (default(cluster.nodes), default(cluster.most))
    has_room = max((node.num_cpus for node in cluster.most), default=0) >= 2 and low <= default(cluster.most)
    return ActorPool(min_size=low, max_size=high, num_cpus=1.0 if has_room else _MIN_DECODE_CPUS, calls_per_actor=2)


def _stream_layout(
    config: ScoreConfig, predict: ActorPool, cluster: Cluster, *, num_rows: int, threads: int | None
) -> Layout:
    """One pool: every actor has the decoders of its videos with it, and is called once for each video at a time."""
    num_videos = config.streams_per_worker(threads)
    cpus = 0.0 if threads is None else max(_MIN_PREDICT_CPUS, threads - _SPARE_CPUS)
    pool = dataclasses.replace(predict, num_cpus=cpus, calls_per_actor=num_videos)
    _check_fits(None, pool, cluster)
    rows = max(1, min(MAX_ROWS_PER_STREAM_BLOCK, num_rows // (4 * num_videos * pool.max_size)))
    return Layout(decode=None, predict=pool, rows_per_block=rows, threads_per_predictor=threads)


def _check_fits(decode: ActorPool | None, predict: ActorPool, cluster: Cluster) -> None:
    """Raise UsageError unless the least of both pools fits on nodes that there are or may be."""
    decode = decode or ActorPool(min_size=0, max_size=0, num_cpus=0)
    demands = [(predict.num_cpus, predict.num_gpus)] * predict.min_size + [(decode.num_cpus, 0.0)] * decode.min_size
    if cluster.fits([(READ_CPUS, 0.0), *demands]):
        return
    need_cpus = decode.min_size * decode.num_cpus + predict.min_size * predict.num_cpus + READ_CPUS
    need_gpus = predict.min_size * predict.num_gpus
    largest = max((node.num_cpus for node in cluster.most), default=0)
    raise UsageError(
        f"the cluster has {cluster.max_cpus:g} CPUs (the largest node {largest:g}) and {cluster.max_gpus:g} GPUs at "
        f"most; {decode.min_size} decoders of {decode.num_cpus:g} CPUs and {predict.min_size} predictors of "
        f"{predict.num_cpus:g} CPUs and {predict.num_gpus:g} GPUs need {need_cpus:g} CPUs and {need_gpus:g} GPUs, and "
        "would wait for ever. Lower --decoders and --predictors (MIN:MAX lets a pool grow with the cluster), take "
        "--device cpu, or --wait-for-nodes SECONDS if nodes are on their way"
    )
