"""A thread that uploads states while training goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from vidray.errors import RunError


class BackgroundThread:
    """Runs calls one after the other on a thread, so that training goes on while states are uploaded.

    At most one waits: with a slow store training waits instead of filling the memory with copies.
    """

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vidray-upload", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call. Raises RunError if an earlier one failed."""
        self._raise_failure()
        self._calls.put(call)

    def finish(self) -> None:
        """Wait until all is done. Raises RunError if something failed."""
        self._calls.join()
        self._raise_failure()

    def close(self) -> None:
        """Finish what is queued and end the thread, without raising."""
        self._calls.put(None)
        self._thread.join()

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise RunError(f"could not save the state: {self._error}") from self._error

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            try:
                if call is None:
                    return
                if self._error is None:
                    call()
            except BaseException as error:  # it is raised where the next call is submitted
                self._error = error
            finally:
                self._calls.task_done()
