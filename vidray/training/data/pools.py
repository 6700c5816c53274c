"""Where clips are made: behind one small interface, so that training does not know whether there is a cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from vidray.errors import UsageError
from vidray.training.data.clips import ClipJob, ClipSpec, ClipWorker, MadeClip


class Pending(Protocol):
    """Clips under way."""

    def result(self) -> list[MadeClip]:
        """Waits for them; in the order of their jobs."""

    def cancel(self) -> object:
        """Nobody waits for them any more."""


class Pool(Protocol):
    """Makes clips side by side."""

    num_parallel: int
    """Calls of `submit` that run at once."""

    def submit(self, jobs: Sequence[ClipJob]) -> Pending:
        """Have these clips made, by one worker."""

    def close(self) -> None:
        """End all workers."""


MakePool = Callable[[ClipSpec], Pool]


class LocalPool:
    """Threads of this process, each with a sandbox of its own: for training without a cluster."""

    def __init__(self, spec: ClipSpec, *, num_parallel: int | None = None) -> None:
        """Args:
        num_parallel: clips at once. Default: one per CPU, at most 8.
        """
        self.num_parallel = num_parallel or min(8, len(os.sched_getaffinity(0)))
        self._spec = spec
        self._own = threading.local()
        self._workers: list[ClipWorker] = []
        self._threads = ThreadPoolExecutor(self.num_parallel, thread_name_prefix="vidray-clips")

    def submit(self, jobs: Sequence[ClipJob]) -> Future[list[MadeClip]]:
        """Have these clips made, by one thread."""
        return self._threads.submit(self._make, jobs)

    def close(self) -> None:
        """Waits for what is being decoded; what has not begun is left."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _make(self, jobs: Sequence[ClipJob]) -> list[MadeClip]:
        worker = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = ClipWorker(self._spec)
            self._workers.append(worker)
        return worker.make(jobs)


MIN_TASK_CPUS = 0.5
"""CPUs that Ray sets aside for a decoding task at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCpus:
    """The share of a cluster's CPUs that decodes."""

    num_parallel: int
    """Decoding tasks at once, of each training worker."""
    cpus_per_task: float


def check_decode_cpus(
    *,
    num_cpus: float,
    num_workers: int,
    cpus_per_worker: float,
    decoders: int | None = None,
    cpus_per_task: float = 1.0,
) -> DecodeCpus:
    """How many decoding tasks each training worker can have beside the training itself.

    A task takes ``cpus_per_task``, or what is left per worker where that is less, but at least ``MIN_TASK_CPUS``.

    Args:
        num_cpus: of the whole cluster, also of nodes without a GPU.
        decoders: tasks per worker that were asked for; they share what is left, and take one CPU each at most.

    Raises:
        UsageError: the workers take all CPUs: decoding would wait for ever, and training with it.
    """
    spare = num_cpus - num_workers * cpus_per_worker
    needed = num_workers * MIN_TASK_CPUS * (decoders or 1)
    if spare < needed:
        most = int(num_cpus // (cpus_per_worker + MIN_TASK_CPUS))
        hint = f"--workers {most} or fewer, or " if most else ""
        raise UsageError(
            f"the cluster has {num_cpus:g} CPUs, and {num_workers} training workers take {cpus_per_worker:g} of them "
            f"each: {max(spare, 0):g} are left for decoding, at least {needed:g} are needed; training would wait for "
            f"ever. Use {hint}nodes with more CPUs (nodes without a GPU will do)"
        )
    share = spare / num_workers
    if decoders is None:
        num_parallel = max(1, int(share / cpus_per_task))
        return DecodeCpus(num_parallel=num_parallel, cpus_per_task=min(cpus_per_task, share))
    return DecodeCpus(num_parallel=decoders, cpus_per_task=min(1.0, share / decoders))
