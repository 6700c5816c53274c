"""How the CPUs and GPUs of a cluster are shared between training workers and the decoding of their clips."""

from __future__ import annotations

from dataclasses import dataclass

from vidray.errors import UsageError
from vidray.training.config import TrainConfig

MIN_CPUS_PER_DECODE_TASK = 0.5
_CPUS_PER_WORKER_ON_GPU = 1.0


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


def plan_resources(config: TrainConfig, cluster: dict[str, float]) -> WorkerResources:
    """What each of ``config.workers`` workers gets.

    Args:
        cluster: numbers of ``CPU`` and ``GPU``, as ``ray.cluster_resources()`` has them.

    Raises:
        UsageError: there are too few GPUs, or no CPUs are left for decoding and training would wait for ever.
    """
    num_cpus, num_gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    on_gpu = config.device == "cuda" or (config.device == "auto" and num_gpus >= 1)
    if on_gpu and num_gpus < config.workers:
        raise UsageError(
            f"--workers {config.workers}: the cluster has {num_gpus:g} GPUs, and every worker needs one; "
            "take fewer workers, or --device cpu"
        )
    cpus_per_worker = _CPUS_PER_WORKER_ON_GPU if on_gpu else _cpus_per_worker_on_cpu(num_cpus / config.workers)
    return WorkerResources(
        on_gpu=on_gpu,
        num_cpus=cpus_per_worker,
        num_threads=config.threads or max(1, int(num_cpus // config.workers)),
        decoding=plan_decoding(
            num_cpus=num_cpus, num_workers=config.workers, cpus_per_worker=cpus_per_worker, decoders=config.decoders
        ),
    )


def _cpus_per_worker_on_cpu(share: float) -> float:
    """Half of a worker's share of the CPUs trains, the other half decodes. Small machines are shared in fractions: the
    model and the decoders take turns there."""
    return float(int(share / 2)) if share >= 2 else round(share / 2, 3)


def plan_decoding(
    *, num_cpus: float, num_workers: int, cpus_per_worker: float, decoders: int | None = None
) -> DecodeCpus:
    """How many decoding tasks each training worker can have beside the training itself.

    A task takes one CPU, or what is left per worker where that is less, but at least half a CPU.

    Args:
        num_cpus: of the whole cluster, also of nodes without a GPU.
        decoders: tasks per worker that were asked for.

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
            f"ever. Use {hint}nodes with more CPUs (nodes without a GPU will do)"
        )
    share = spare / num_workers
    if decoders is None:
        return DecodeCpus(num_parallel=max(1, int(share)), cpus_per_task=min(1.0, share))
    return DecodeCpus(num_parallel=decoders, cpus_per_task=min(1.0, share / decoders))
