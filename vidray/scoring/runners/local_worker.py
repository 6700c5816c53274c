"""The worker process of the local runner: ``python -m vidray.scoring.runners.local_worker FD``.

Plan rows come in and predicted rows go out as Arrow IPC over one socket; no pixels cross it. Inside, threads::

    main: receives ─todo─> decode threads, two for each sandbox ─decoded─> predict threads ──> sends

The two threads of a sandbox take turns decoding: while one decodes its block, the other fetches the next.
The process ends when the driver closes the socket or dies, and at the first error that is no video's fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import pyarrow as pa

from vidray.errors import RunError, UsageError
from vidray.scoring.runners.base import Stages
from vidray.storage.failures import describe

ROWS, USAGE_ERROR, RUN_ERROR, CRASH = b"rows", b"use ", b"run ", b"died"
"""What a message of the worker is: its first four bytes."""
TAG_BYTES = 4
CALLS_PER_DECODER = 2
PREDICT_CALLS = 2
"""Blocks in the predict stage at once: what one leaves idle at its end, the other uses."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a worker is made of. Pickled to it."""

    stages: Stages
    num_decoders: int
    """Decode stages, each with a sandbox of its own."""
    num_predict_calls: int = PREDICT_CALLS
    """Blocks in the predict stage at once."""
    max_rows_per_call: int
    """Rows that one call of the predict stage gets at most; as a rule it gets what has been decoded by then."""
    num_waiting: int
    """Decoded blocks that may wait for the predictor."""


def to_bytes(table: pa.Table) -> memoryview:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def from_bytes(data: bytes | memoryview) -> pa.Table:
    """The inverse of ``to_bytes``."""
    return pa.ipc.open_stream(data).read_all()


class Worker:
    """Runs the stages on threads of this process."""

    def __init__(self, connection: Connection, spec: WorkerSpec) -> None:
        self._connection, self._spec = connection, spec
        self._sending = threading.Lock()
        self._todo: queue.SimpleQueue[pa.Table] = queue.SimpleQueue()
        self._decoded: queue.Queue[pa.Table] = queue.Queue(maxsize=spec.num_waiting)

    def serve(self) -> None:
        """Receive rows until the driver hangs up. Never returns."""
        self._start(self._start_decoding)
        self._start(self._start_predicting)
        try:
            while True:
                self._todo.put(from_bytes(self._connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(0)

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._guard, args=(work,), daemon=True).start()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._give_up(error)

    def _start_decoding(self) -> None:
        decode = self._spec.stages.decode
        for _ in range(self._spec.num_decoders if decode else 0):
            assert decode is not None
            stage = decode.make()
            for _ in range(CALLS_PER_DECODER):
                self._start(functools.partial(self._decode, stage))

    def _start_predicting(self) -> None:
        stage = self._spec.stages.predict.make()
        for _ in range(self._spec.num_predict_calls):
            self._start(functools.partial(self._predict, stage))

    def _decode(self, stage: Callable[[pa.Table], pa.Table]) -> None:
        while True:
            self._decoded.put(_run(stage, self._todo.get()))

    def _predict(self, stage: Callable[[pa.Table], pa.Table]) -> None:
        take = self._take_decoded if self._spec.stages.decode else self._todo.get
        while True:
            self._send(ROWS, to_bytes(_run(stage, take())))

    def _take_decoded(self) -> pa.Table:
        """The block that waits longest, with those that wait behind it: so batches fill up across blocks."""
        tables = [self._decoded.get()]
        num_rows = tables[0].num_rows
        with contextlib.suppress(queue.Empty):
            while num_rows < self._spec.max_rows_per_call:
                tables.append(self._decoded.get_nowait())
                num_rows += tables[-1].num_rows
        return pa.concat_tables(tables)

    def _send(self, tag: bytes, data: bytes | memoryview) -> None:
        with self._sending:
            self._connection.send_bytes(b"".join((tag, data)))

    def _give_up(self, error: BaseException) -> None:
        """Say what ended this process, and end it. What is under way in it is lost, and asked for again."""
        tag = USAGE_ERROR if isinstance(error, UsageError) else RUN_ERROR if isinstance(error, RunError) else CRASH
        text = describe(error) if tag == CRASH else str(error)
        with contextlib.suppress(OSError):
            self._send(tag, text.encode(errors="replace"))
        os._exit(1)


def _run(stage: Callable[[pa.Table], pa.Table], block: pa.Table) -> pa.Table:
    """What a stage makes of a block. A row that it drops would be waited for until the stall timeout."""
    result = stage(block)
    if result.num_rows != block.num_rows:
        raise RuntimeError(f"{type(stage).__name__} gave {result.num_rows} rows for {block.num_rows}")
    return result


def main() -> None:
    """Serve the driver at the other end of the inherited socket."""
    # Should this process not come back to Python, stuck in a kernel of the network, it still ends with the driver.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    connection = Connection(int(sys.argv[1]))
    try:
        spec: WorkerSpec = pickle.loads(connection.recv_bytes())
    except EOFError:  # the driver changed its mind, or is gone
        return
    Worker(connection, spec).serve()


if __name__ == "__main__":
    main()
