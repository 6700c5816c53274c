"""Where the loop's states, best weights and metrics go: the output's file system, in the background."""

from __future__ import annotations

from collections.abc import Callable

from vidray.storage.store import Store
from vidray.training.loop.loop import Loop
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.state import Background, DamagedStateError, State, StateStore, Tensors
from vidray.training.loop.task import METRICS_FILE

BEST_PREFIX = "_train/best"


class StoreKeeper:
    """Saves on the first rank. The others only wait at ``restore``."""

    def __init__(self, store: Store, *, num_kept: int, say: Callable[[str], None] = print) -> None:
        self._store, self._num_kept, self._say = store, num_kept, say
        self._states, self._bests = StateStore(store), StateStore(store, BEST_PREFIX)
        self._background = Background()

    def save(self, state: State) -> None:
        """Queue a state; training goes on. Raises RunError if an earlier one could not be saved."""
        self._background.submit(lambda: self._write(state))

    def save_best(self, step: int, weights: Tensors) -> None:
        """Queue the best weights so far; the state that names them comes after."""
        if weights:
            self._background.submit(lambda: self._bests.save(State(step=step, values={}, tensors={"model": weights})))

    def finish(self) -> None:
        """Wait until all is written. Raises RunError if something could not be."""
        self._background.finish()

    def close(self) -> None:
        """End the thread."""
        self._background.close()

    def best(self, step: int) -> Tensors | None:
        """The best weights, or None (and says so) if they are damaged."""
        try:
            return self._bests.load(step).tensors["model"]
        except DamagedStateError as error:
            self._say(f"the best weights are damaged, taking the last ones instead: {error}")
            return None

    def restore(self, loop: Loop, ranks: Ranks, *, restart_from: str | None = None) -> int:
        """Bring a loop to the last whole state, on all ranks alike. Returns its step, 0 for a fresh start."""
        state = self._states.load_last(say=self._say, restart_from=restart_from) if ranks.is_first else None
        step = ranks.from_first(state.step if state else None)
        if step is None:
            return 0
        state = state or self._states.load(step)
        loop.restore(state)
        if ranks.is_first:
            self._bests.forget_after(loop.progress.best_step if loop.progress.best_step is not None else -1)
        return step

    def _write(self, state: State) -> None:
        self._states.save(state)
        self._states.keep_last(self._num_kept)
        # Each kept state names one of the last bests, and one more may be on its way.
        self._bests.keep_last(self._num_kept + 1)
        replace(self._store, METRICS_FILE, state.texts[METRICS_FILE].encode())


def replace(store: Store, path: str, data: bytes) -> None:
    """Write an object that is only there to be looked at, whatever was there before."""
    store.delete(path)
    store.create(path, data)
