"""Where the loop's states, best weights and metrics go: the output's file system, in the background."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from vidray.storage.store import Store
from vidray.training.data.bad_videos import BAD_VIDEOS_FILE
from vidray.training.loop.background import BackgroundThread
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.state import DamagedStateError, State, StateStore, Tensors

METRICS_FILE = "metrics.jsonl"
BEST_PREFIX = "_train/best"


class CheckpointWriter:
    """Saves on the first rank, and loads for all of them.

    Args:
        check_lease: raises if the output is another run's by now; called before everything that is written.
    """

    def __init__(
        self,
        store: Store,
        *,
        num_kept: int,
        log: Callable[[str], None] = print,
        check_lease: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._num_kept, self._log, self._check_lease = store, num_kept, log, check_lease
        self._states, self._bests = StateStore(store), StateStore(store, BEST_PREFIX)
        self._background = BackgroundThread()

    def save(self, state: State) -> None:
        """Queue a state; training goes on. Raises RunError if an earlier one could not be saved."""
        self._background.submit(lambda: self._write(state))

    def save_best(self, step: int, weights: Tensors) -> None:
        """Queue the best weights so far; the state that names them comes after."""
        self._background.submit(lambda: self._write_best(State(step=step, values={}, tensors={"model": weights})))

    def finish(self) -> None:
        """Wait until all is written. Raises RunError if something could not be."""
        self._background.finish()

    def close(self) -> None:
        """End the thread."""
        self._background.close()

    def load_best(self, step: int) -> Tensors | None:
        """The best weights, or None (and logs why) if they are damaged."""
        try:
            return self._bests.load(step).tensors["model"]
        except DamagedStateError as error:
            self._log(f"the best weights are damaged, taking the last ones instead: {error}")
            return None

    def load_last(self, ranks: Ranks, *, restart_from: str | None = None) -> State | None:
        """The last whole state, the same on all ranks; None for a fresh start.

        What is later than this state is deleted: the run writes these steps again.

        Raises:
            UsageError: ``restart_from`` is not there or damaged.
            RunError: there are states, but all are damaged.
        """
        state = self._states.load_last(log=self._log, restart_from=restart_from) if ranks.is_first else None
        step = ranks.from_first(state.step if state else None)
        if step is None:
            return None
        state = state or self._states.load(step)
        if ranks.is_first:
            best_step = state.values.get("best_step")
            self._bests.forget_after(-1 if best_step is None else best_step)
        return state

    def _write_best(self, state: State) -> None:
        self._check_lease()
        self._bests.save(state)

    def _write(self, state: State) -> None:
        self._check_lease()
        self._states.save(state)
        self._states.keep_last(self._num_kept)
        # Each kept state names one of the last bests, and one more may be on its way.
        self._bests.keep_last(self._num_kept + 1)
        self._store.overwrite(METRICS_FILE, state.texts[METRICS_FILE].encode())


def write_bad_videos(store: Store, table: pa.Table) -> str:
    """Put ``bad_videos.parquet`` into the output, or replace it; returns its URI."""
    data = io.BytesIO()
    pq.write_table(table, data)
    store.overwrite(BAD_VIDEOS_FILE, data.getvalue())
    return store.uri_for(BAD_VIDEOS_FILE)
