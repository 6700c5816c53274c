"""Clips made by plain Ray tasks on any node of the cluster: the part of the training data that knows Ray.

A task lost with its node is run again by Ray, and gives the same clips: everything random is in the jobs. Each process
that runs such tasks keeps its worker, and with it the sandbox, for the next one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import ray

from vidray.errors import RunError
from vidray.training.data.clips import ClipJob, ClipSpec, ClipWorker, MadeClip

MAX_RETRIES = 3
"""How often a task is run again whose process or node died."""


class RayClipPool:
    """Ray tasks, spread over the nodes. Needs ``ray.init`` or a Ray Train worker."""

    def __init__(self, spec: ClipSpec, *, num_parallel: int, cpus_per_task: float = 1.0) -> None:
        """Args:
        num_parallel: tasks that the cluster can run at once for this rank.
        """
        self.num_parallel = num_parallel
        self._spec = ray.put(spec)
        self._task = ray.remote(_make).options(
            num_cpus=cpus_per_task, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD"
        )

    def submit(self, jobs: Sequence[ClipJob]) -> RayPendingClips:
        """Have these clips made, by one task."""
        return RayPendingClips(self._task.remote(self._spec, list(jobs)))

    def close(self) -> None:
        """Nothing is left to end: Ray ends idle processes by itself."""


class RayPendingClips:
    """The clips of one task."""

    def __init__(self, ref: Any) -> None:
        self._ref = ref

    def result(self) -> list[MadeClip]:
        """Waits for them. Raises RunError if a store was away, or the task's process died again and again."""
        try:
            return ray.get(self._ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RunError):
                raise error.cause from None
            raise  # a mistake of ours, with its traceback
        except ray.exceptions.RayError as error:
            raise RunError(f"decoding failed {MAX_RETRIES + 1} times: {error}") from error

    def cancel(self) -> None:
        """The task is not started any more; one that runs is let run."""
        ray.cancel(self._ref)


@functools.lru_cache(maxsize=2)  # an epoch's validation and the next epoch's first clips
def _worker(spec: ClipSpec) -> ClipWorker:
    return ClipWorker(spec)


def _make(spec: ClipSpec, jobs: list[ClipJob]) -> list[MadeClip]:
    return _worker(spec).make(jobs)
