"""Where clips are made: behind one small interface, so that training does not know whether there is a cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from vidray.training.data.clips import ClipJob, ClipSpec, ClipWorker, MadeClip


class PendingClips(Protocol):
    """Clips under way."""

    def result(self) -> list[MadeClip]:
        """Waits for them; in the order of their jobs."""

    def cancel(self) -> object:
        """Nobody waits for them any more."""


class ClipPool(Protocol):
    """Makes clips side by side."""

    num_parallel: int
    """Calls of `submit` that run at once."""

    def submit(self, jobs: Sequence[ClipJob]) -> PendingClips:
        """Have these clips made, by one worker."""

    def close(self) -> None:
        """End all workers."""


MakeClipPool = Callable[[ClipSpec], ClipPool]


class LocalClipPool:
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
