"""Has work under way before its result is asked for: clips in a pool, and the batch after the current one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vidray.training.data.clips import ClipJob, MadeClip
from vidray.training.data.pools import ClipPool, PendingClips

T = TypeVar("T")
Result = TypeVar("Result")


class Prefetcher:
    """Clips in the order of their jobs, with a bounded number of them under way. Use it from one thread.

    Args:
        jobs: a job that is None asks for no clip and gives None.
        max_ahead: jobs that are under way or wait to be taken.
        group_size: jobs that are submitted together, for one worker.
    """

    def __init__(self, pool: ClipPool, jobs: Iterator[ClipJob | None], *, max_ahead: int, group_size: int) -> None:
        self._pool, self._jobs, self._max_ahead, self._group_size = pool, jobs, max_ahead, group_size
        self._groups: deque[tuple[list[bool], PendingClips | None]] = deque()
        """For each group of jobs, which of them are real, and their clips."""
        self._num_ahead = 0
        self._ready: deque[MadeClip | None] = deque()
        self._fill()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Give up what is under way."""
        for _are_real, pending in self._groups:
            if pending is not None:
                pending.cancel()

    def next(self) -> MadeClip | None:
        """The next job's clip; None for a job that is None."""
        while not self._ready:
            are_real, pending = self._groups.popleft()
            clips = iter(pending.result() if pending else ())
            self._ready.extend(next(clips) if is_real else None for is_real in are_real)
            self._num_ahead -= len(are_real)
            self._fill()
        return self._ready.popleft()

    def _fill(self) -> None:
        while self._num_ahead < self._max_ahead:
            group = list(itertools.islice(self._jobs, self._group_size))
            if not group:
                return
            real = [job for job in group if job is not None]
            are_real = [job is not None for job in group]
            self._groups.append((are_real, self._pool.submit(real) if real else None))
            self._num_ahead += len(group)


def map_one_ahead(work: Callable[[T], Result], items: Sequence[T]) -> Iterator[Result]:
    """``work`` of each item, in order; that of the next one is done while the consumer is busy with the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="vidray-batch") as thread:
        ahead = deque(thread.submit(work, item) for item in items[:1])
        for number in range(len(items)):
            ahead.extend(thread.submit(work, item) for item in items[number + 1 : number + 2])
            yield ahead.popleft().result()
