"""Stages that die, drop and reorder: what can happen to a block in a runner, made to happen."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidray.errors import DeviceLostError
from vidray.scoring.output import ROW
from vidray.scoring.runners.base import Stages, StageSpec
from vidray.scoring.stage_specs import MakeRunStages, default_stages
from vidray.scoring.stages import DecodeStage, PredictStage
from vidray.scoring.stream_stage import StreamStage

NUM_DEATHS = 3


def changed(spec: StageSpec, cls: type | None = None, **more: object) -> StageSpec:
    """The same stage of another class, with more arguments."""
    return StageSpec(cls=cls or spec.cls, kwargs={**spec.kwargs, **more})


def poison_stages(*args) -> Stages:
    """The default stages, whose sandboxes commit the faults that are written in videos."""
    stages, child = default_stages(*args), "tests.support.poison_child"
    if stages.decode is None:
        return Stages(decode=None, predict=changed(stages.predict, child_module=child))
    return Stages(decode=changed(stages.decode, child_module=child), predict=stages.predict)


def faulty_stages(*, victim: str, state: Path) -> MakeRunStages:
    """The default stages, of which ``victim`` (decode, predict, child, device, drops a row) fails a few times, or at
    row 5 for ever (drops a row, loses its device).
    """
    state.mkdir(parents=True, exist_ok=True)

    def make(*args):
        stages, faults = default_stages(*args), {"victim": victim, "state": str(state)}
        assert stages.decode is not None
        return Stages(
            decode=changed(stages.decode, FaultyDecode, **faults),
            predict=changed(stages.predict, FaultyPredict, **faults),
        )

    return make


def dies_now(state: str, block: pa.Table) -> bool:
    """True once for each of the first blocks that are seen, and again never: the replay survives.

    Workers ask at the same time, so a death is a file that only one of them can make.
    """
    first_row = str(block[ROW][0].as_py())
    if any(death.read_text() == first_row for death in Path(state).iterdir()):
        return False
    for number in range(NUM_DEATHS):
        with contextlib.suppress(FileExistsError), open(Path(state) / f"death-{number}", "x") as death:
            death.write(first_row)
            return True
    return False


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
        if self._victim == "device" and dies_now(self._state, block):
            raise DeviceLostError("CUDA error: an illegal memory access was encountered")
        if self._victim == "loses its device" and 5 in block[ROW].to_pylist():
            raise DeviceLostError("CUDA error: device-side assert triggered")
        result = super().__call__(block)
        if self._victim != "predict":
            return result
        if dies_now(self._state, block):
            os.kill(os.getpid(), signal.SIGKILL)
        return reordered(result)


def faulty_streams(*, state: Path) -> MakeRunStages:
    """The stage of a streaming run, which dies a few times when it has scored a block."""
    state.mkdir(parents=True, exist_ok=True)

    def make(*args):
        return Stages(decode=None, predict=changed(default_stages(*args).predict, FaultyStream, state=str(state)))

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


class Predicts:
    """Has nothing against any row."""

    def __call__(self, block: pa.Table) -> pa.Table:
        statuses = pa.array(["ok"] * block.num_rows)
        return block.append_column("status", statuses).append_column("error", pa.nulls(block.num_rows, pa.string()))


class DropsAll:
    """An engine that forgets what it was asked."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return block.drop_columns(["views"]).slice(block.num_rows)


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


class ByRow:
    """Passes rows on, and does something else when it meets some of them, at most ``times`` times (counted in
    ``state``): what a network can do to its process.
    """

    def __init__(self, *, fault: str, rows: list[int], state: str, times: int = 10**6) -> None:
        self._fault, self._rows, self._state, self._times = fault, set(rows), Path(state), times

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._rows & set(block[ROW].to_pylist()) and len(list(self._state.iterdir())) < self._times:
            (self._state / f"{os.getpid()}-{time.monotonic_ns()}").touch()
            return FAULTS[self._fault](block)
        return block.append_column("pid", pa.array([os.getpid()] * block.num_rows))


def kill_self(block: pa.Table) -> pa.Table:
    os.kill(os.getpid(), signal.SIGKILL)
    return block


def raise_error(block: pa.Table) -> pa.Table:
    raise ValueError("a device that is gone")


def exit_quietly(block: pa.Table) -> pa.Table:
    os.write(2, b"Fatal: something went wrong\n")
    os._exit(7)


def sleep_for_ever(block: pa.Table) -> pa.Table:
    time.sleep(3600)
    return block


FAULTS = {
    "is killed": kill_self,
    "raises": raise_error,
    "exits": exit_quietly,
    "hangs": sleep_for_ever,
    "drops a row": lambda block: block.slice(1),
}


class Refuses:
    """Cannot be made: a mistake of the user's, or a machine that cannot do it."""

    def __init__(self, *, error: type[Exception]) -> None:
        raise error("no such thing")


class Tells:
    """Says in every row which process it is in, and a variable of its environment. Takes so long for each row."""

    def __init__(self, *, variable: str = "HOME", seconds: float = 0.0) -> None:
        self._value, self._seconds = os.environ.get(variable), seconds

    def __call__(self, block: pa.Table) -> pa.Table:
        time.sleep(self._seconds * block.num_rows)
        size = [block.num_rows] * block.num_rows
        told = {"pid": [os.getpid()] * block.num_rows, "told": [self._value] * block.num_rows, "n": size}
        for name, values in told.items():
            block = block.append_column(name, pa.array(values))
        return block
