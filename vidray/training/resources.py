"""How the CPUs and GPUs of a cluster are shared between training workers and the decoding of their clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vidray.cluster import Cluster
from vidray.errors import UsageError
from vidray.training.config import TrainConfig

MIN_CPUS_PER_DECODE_TASK = 0.5
_CPUS_PER_WORKER_ON_GPU = 1.0
_WAIT_HINT = ", or --wait-for-nodes SECONDS if nodes are on their way"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCpus:
    """The share of a cluster's CPUs that decodes."""

    num_parallel: int
    """Decoding tasks at once, of each training worker."""
    cpus_per_task: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerResources:
    """What one training worker has of the cluster."""

    on_gpu: bool
    num_cpus: float
    """Of the training itself."""
    num_threads: int
    """Of torch."""
    decoding: DecodeCpus


def plan_resources(config: TrainConfig, cluster: Cluster) -> WorkerResources:
    """What each of ``config.workers`` workers gets. Nodes that an autoscaler may bring count.

    Raises:
        UsageError: there are too few GPUs, or no CPUs are left for decoding, or a worker fits on no node: training
            would wait for ever.
    """
    num_cpus, num_gpus = cluster.max_cpus, cluster.max_gpus
    on_gpu = config.device == "cuda" or (config.device == "auto" and num_gpus >= 1)
    if on_gpu and num_gpus < config.workers:
        raise UsageError(
            f"--workers {config.workers}: the cluster has {num_gpus:g} GPUs, and every worker needs one; "
            f"take fewer workers, or --device cpu{_WAIT_HINT}"
        )
    # A worker lives on one node: of a CPU node it takes no more than that has, of a GPU node its share.
    node_cpus = max((node.num_cpus for node in cluster.most), default=0.0)
    share = num_cpus / config.workers
    cpus_per_worker = _CPUS_PER_WORKER_ON_GPU if on_gpu else _cpus_per_worker_on_cpu(share, node_cpus)
    decoding = plan_decoding(
        num_cpus=num_cpus,
        num_workers=config.workers,
        cpus_per_worker=cpus_per_worker,
        decoders=config.decoders,
        # A network on CPUs leaves its half idle while it waits for data: small shares let decoders use those CPUs too.
        cpus_per_task=1.0 if on_gpu else MIN_CPUS_PER_DECODE_TASK,
    )
    _check_fits(config.workers, (cpus_per_worker, 1.0 if on_gpu else 0.0), decoding, cluster)
    threads = _threads_beside_a_gpu(cluster) if on_gpu else max(1, int(min(share, node_cpus)))
    return WorkerResources(
        on_gpu=on_gpu, num_cpus=cpus_per_worker, num_threads=config.threads or threads, decoding=decoding
    )


def _cpus_per_worker_on_cpu(share: float, node_cpus: float) -> float:
    """Half of a worker's share of the CPUs trains, the other half decodes, but no more than a node has. Small machines
    are shared in fractions: the model and the decoders take turns there."""
    half = min(share / 2, node_cpus)
    return float(int(half)) if half >= 1 else round(half, 3)


def _threads_beside_a_gpu(cluster: Cluster) -> int:
    """CPUs of a GPU's node, shared by its GPUs."""
    return max(1, max(int(node.num_cpus // node.num_gpus) for node in cluster.most if node.num_gpus))


def _check_fits(num_workers: int, worker: tuple[float, float], decoding: DecodeCpus, cluster: Cluster) -> None:
    """Raise UsageError unless all workers, and a decoding task for each, find room on some node."""
    if cluster.fits([worker] * num_workers + [(decoding.cpus_per_task, 0.0)] * num_workers):
        return
    kinds = Counter(cluster.most).items()
    nodes = ", ".join(f"{count} × {node.num_cpus:g} CPUs and {node.num_gpus:g} GPUs" for node, count in kinds)
    raise UsageError(
        f"--workers {num_workers}: each needs {worker[0]:g} CPUs and {worker[1]:g} GPUs of one node, and "
        f"{decoding.cpus_per_task:g} CPUs of any for decoding; the cluster has {nodes or 'no node'} at most, so it "
        f"would wait for ever. Take fewer workers{_WAIT_HINT}"
    )


def plan_decoding(
    *,
    num_cpus: float,
    num_workers: int,
    cpus_per_worker: float,
    decoders: int | None = None,
    cpus_per_task: float = 1.0,
) -> DecodeCpus:
    """How many decoding tasks each training worker can have beside the training itself.

    A task takes ``cpus_per_task``, or what is left per worker where that is less, but at least
    ``MIN_CPUS_PER_DECODE_TASK``.

    Args:
        num_cpus: of the whole cluster, also of nodes without a GPU.
        decoders: tasks per worker that were asked for; they share what is left, and take one CPU each at most.

    Raises:
        UsageError: the workers take all CPUs: decoding would wait for ever, and training with it.
    """
    spare = num_cpus - num_workers * cpus_per_worker
    needed = num_workers * MIN_CPUS_PER_DECODE_TASK * (decoders or 1)
    if spare < needed:
        most = int(num_cpus // (cpus_per_worker + MIN_CPUS_PER_DECODE_TASK))
        hint = f"--workers {most} or fewer, or " if most else ""
        raise UsageError(
            f"the cluster has {num_cpus:g} CPUs, and {num_workers} training workers take {cpus_per_worker:g} of them "
            f"each: {max(spare, 0):g} are left for decoding, at least {needed:g} are needed; training would wait for "
            f"ever. Use {hint}nodes with more CPUs (nodes without a GPU will do){_WAIT_HINT}"
        )
    share = spare / num_workers
    if decoders is None:
        return DecodeCpus(num_parallel=max(1, int(share / cpus_per_task)), cpus_per_task=min(cpus_per_task, share))
    return DecodeCpus(num_parallel=decoders, cpus_per_task=min(1.0, share / decoders))
