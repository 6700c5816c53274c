"""Stages that die, drop and reorder: what can happen to a block in Ray, made to happen."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidray.scoring.job import MakeStages, default_stages
from vidray.scoring.output import ROW
from vidray.scoring.runners.ray import Stage
from vidray.scoring.stages import DecodeStage, PredictStage
from vidray.scoring.stream_stage import StreamStage

NUM_DEATHS = 3


def faulty_stages(*, victim: str, state: Path) -> MakeStages:
    """The default stages, of which ``victim`` (decode, predict, child, drops a row) fails a few times."""
    state.mkdir(parents=True, exist_ok=True)

    def make(*args):
        decode, predict = default_stages(*args)
        decode = Stage(cls=FaultyDecode, kwargs={**decode.kwargs, "victim": victim, "state": str(state)})
        predict = Stage(cls=FaultyPredict, kwargs={**predict.kwargs, "victim": victim, "state": str(state)})
        return decode, predict

    return make


def dies_now(state: str, block: pa.Table) -> bool:
    """True once for each of the first blocks that are seen, and again never: the replay survives."""
    death = Path(state) / f"block-{block[ROW][0].as_py()}"
    if death.exists() or len(list(Path(state).iterdir())) >= NUM_DEATHS:
        return False
    death.touch()
    return True


def reordered(block: pa.Table) -> pa.Table:
    return block.take(np.arange(block.num_rows)[::-1])


class FaultyDecode(DecodeStage):
    def __init__(self, *, victim: str, state: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self._victim, self._state = victim, state

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._victim == "drops a row":
            return super().__call__(block).filter(pa.array(block[ROW].to_numpy() != 5))
        dying = self._victim in ("decode", "child") and dies_now(self._state, block)
        if dying and self._victim == "child":
            with self._decoding:  # another block may be in here
                self._sandbox._ready_child()
                os.kill(self._sandbox.pid, signal.SIGKILL)
        result = super().__call__(block)
        if dying and self._victim == "decode":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._victim == "decode":
            # A replay that gives rows of other sizes, in another order.
            notes = pa.array(["x" * 1000 * i for i in range(result.num_rows)])
            result = result.set_column(result.schema.get_field_index("error"), "error", notes)
            return reordered(result)
        return result


class FaultyPredict(PredictStage):
    def __init__(self, *, victim: str, state: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self._victim, self._state = victim, state

    def __call__(self, block: pa.Table) -> pa.Table:
        result = super().__call__(block)
        if self._victim != "predict":
            return result
        if dies_now(self._state, block):
            os.kill(os.getpid(), signal.SIGKILL)
        return reordered(result)


def faulty_streams(*, state: Path) -> MakeStages:
    """The stage of a streaming run, which dies a few times when it has scored a block."""
    state.mkdir(parents=True, exist_ok=True)

    def make(*args):
        _, predict = default_stages(*args)
        return None, Stage(cls=FaultyStream, kwargs={**predict.kwargs, "state": str(state)})

    return make


class FaultyStream(StreamStage):
    def __init__(self, *, state: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self._state = state

    def __call__(self, block: pa.Table) -> pa.Table:
        result = super().__call__(block)
        if dies_now(self._state, block):
            os.kill(os.getpid(), signal.SIGKILL)
        return reordered(result)


class Counts:
    """Passes rows on and says how many came together."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return block.append_column("n", pa.array([block.num_rows] * block.num_rows))


class Same:
    def __call__(self, block: pa.Table) -> pa.Table:
        return block


class Breaks:
    def __init__(self) -> None:
        raise ValueError("no such thing")

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


class Meets:
    """Notes whether ``num_calls`` blocks have been in here at once. The first waits for the others, for a while."""

    def __init__(self, *, num_calls: int) -> None:
        self._barrier = threading.Barrier(num_calls, timeout=10)
        self._met = False

    def __call__(self, block: pa.Table) -> pa.Table:
        if not self._barrier.broken and not self._met:
            with contextlib.suppress(threading.BrokenBarrierError):
                self._barrier.wait()
                self._met = True
        return block.append_column("met", pa.array([self._met] * block.num_rows))


class Inflates:
    """Makes rows of so many bytes, at once."""

    def __init__(self, *, num_bytes: int) -> None:
        self._num_bytes = num_bytes

    def __call__(self, block: pa.Table) -> pa.Table:
        views = pa.array([bytes(self._num_bytes)] * block.num_rows, pa.large_binary())
        made_at = pa.array([time.time()] * block.num_rows)
        return block.append_column("views", views).append_column("made_at", made_at)


class Dawdles:
    """Takes a while for a block, and says when it began."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, block: pa.Table) -> pa.Table:
        began_at = time.time()
        time.sleep(self._seconds)
        return block.drop_columns(["views"]).append_column("began_at", pa.array([began_at] * block.num_rows))
