"""A pool of threads whose tasks may spawn further tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any


class TaskPool:
    """Runs tasks, which may spawn further ones. The first error ends them all."""

    def __init__(self, num_threads: int, *, on_step: Callable[[], None] = lambda: None) -> None:
        """``on_step``: called while somebody waits, after each task that has ended."""
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="vidray-list")
        self._results: SimpleQueue[BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_open = 0
        self._is_over = False
        self._on_step = on_step

    @property
    def num_idle(self) -> int:
        """How many more tasks would start at once."""
        return max(0, self.num_threads - self._num_open)

    def __enter__(self) -> TaskPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Raises CancelledError if nobody waits for this task any more. For tasks that take long."""
        if self._is_over:
            raise CancelledError

    def spawn(self, task: Callable[..., None], *args: Any) -> None:
        """Runs ``task(*args)`` on the pool."""
        with self._lock:
            self._num_open += 1
        self._pool.submit(self._run, task, args)

    def join(self, *, leaving: int = 0) -> None:
        """Waits until no more tasks than so many are left, those spawned meanwhile too."""
        while self._num_open > leaving:
            error = self._results.get()
            with self._lock:
                self._num_open -= 1
            if error is not None:
                raise error
            self._on_step()

    def _run(self, task: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            task(*args)
        except BaseException as error:
            self._results.put(error)
        else:
            self._results.put(None)
