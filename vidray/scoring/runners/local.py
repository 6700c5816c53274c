"""The local runner: all the work on this machine, one worker process for each GPU, or for each eight CPUs.

The driver imports neither torch nor Ray. It deals plan rows to the workers and takes predicted rows from them; what
happens in a worker is in ``local_worker``. A worker that dies is started anew, and its unfinished rows are lost: the
job asks for them again, one by one.
"""

from __future__ import annotations

import dataclasses
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from typing import Literal

import pyarrow as pa

from vidray.cpu_tuning import ENVIRONMENT, num_cpus
from vidray.errors import RunError, UsageError
from vidray.flags import parse_pool
from vidray.scoring.config import CPUS_PER_PREDICTOR, ScoreConfig
from vidray.scoring.output import ROW
from vidray.scoring.runners import local_worker
from vidray.scoring.runners.base import UNKNOWN_LOSS, Loss, MakeStages
from vidray.scoring.runners.local_worker import CALLS_PER_DECODER, WorkerSpec, from_bytes, to_bytes
from vidray.types import Status, ViewConfig

MAX_DEATHS_IN_A_ROW = 10
"""Workers that die one after the other without a finished row, before the run gives up: that is no video's fault."""
_MAX_BLOCK_ROWS = 8
_MAX_BLOCK_BYTES = 64 * 1024**2
_CALL_BYTES = 256 * 1024**2
"""Views in one call of the predict stage, at most."""
_LOOK_SECONDS = 1.0
_EXIT_SECONDS = 5.0
_MAX_LAST_WORDS_BYTES = 1000
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
"""What the drivers of NVIDIA's and AMD's GPUs leave behind."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LocalLayout:
    """How the machine is shared."""

    gpus: tuple[str | None, ...]
    """Which GPU each worker sees (as in CUDA_VISIBLE_DEVICES); None: it runs on CPUs."""
    threads_per_worker: int | None
    """CPU threads of a worker's network; None: on a GPU."""
    decoders_per_worker: int
    max_rows_per_block: int
    """Rows that a worker gets in one message at most."""
    max_rows_per_call: int
    num_predict_calls: int
    max_rows_in_flight: int
    """Rows that a worker has and has not answered for."""

    @property
    def num_workers(self) -> int:
        return len(self.gpus)


def make_layout(
    config: ScoreConfig, view: ViewConfig, *, num_cpus: int, gpus: tuple[str, ...], num_rows: int
) -> LocalLayout:
    """Share out a machine. Raises UsageError for what it does not have.

    Args:
        gpus: what the machine's GPUs are called in CUDA_VISIBLE_DEVICES.
        num_rows: videos to score; there are no more workers than these.
    """
    on_gpu = config.device == "cuda" or (config.device == "auto" and bool(gpus))
    if config.precision == "fp16" and not on_gpu:
        raise UsageError("--precision fp16 needs a GPU; on a CPU take fp32 or bf16")
    num_workers = min(_num_workers(config, num_cpus=num_cpus, num_gpus=len(gpus), on_gpu=on_gpu), max(1, num_rows))
    threads = None if on_gpu else max(1, num_cpus // num_workers)
    chosen: tuple[str | None, ...] = gpus[:num_workers] if on_gpu else (None,) * num_workers
    if view.is_chunked:
        num_videos = config.streams_per_worker(threads)
        return LocalLayout(
            gpus=chosen,
            threads_per_worker=threads,
            decoders_per_worker=0,
            max_rows_per_block=1,
            max_rows_per_call=1,
            num_predict_calls=num_videos,
            max_rows_in_flight=2 * num_videos,
        )
    asked = parse_pool(config.decoders or "")
    decoders = max(1, (asked[1] if asked else num_cpus) // num_workers)
    rows = max(1, min(_MAX_BLOCK_ROWS, _MAX_BLOCK_BYTES // view.num_bytes))
    num_blocks = 2 * CALLS_PER_DECODER * decoders + _num_waiting(decoders) + local_worker.PREDICT_CALLS
    return LocalLayout(
        gpus=chosen,
        threads_per_worker=threads,
        decoders_per_worker=decoders,
        max_rows_per_block=rows,
        max_rows_per_call=max(rows, _CALL_BYTES // view.num_bytes),
        num_predict_calls=local_worker.PREDICT_CALLS,
        max_rows_in_flight=rows * num_blocks,
    )


def _num_workers(config: ScoreConfig, *, num_cpus: int, num_gpus: int, on_gpu: bool) -> int:
    default = num_gpus if on_gpu else max(1, num_cpus // CPUS_PER_PREDICTOR)
    low, high = parse_pool(config.predictors or "") or (1, max(1, default))
    if on_gpu and num_gpus < low:
        raise UsageError(
            f"this machine has {num_gpus} GPUs, and {low} are needed: lower --predictors, or take --device cpu"
        )
    return max(low, min(high, default))


def _num_waiting(num_decoders: int) -> int:
    """Decoded blocks that may wait: enough that the predictor never waits for one decoder, and a bounded memory."""
    return max(2, num_decoders)


def find_gpus() -> tuple[str, ...]:
    """What this machine's GPUs are called in CUDA_VISIBLE_DEVICES. Asks a process of its own: torch takes a while."""
    if not any(map(os.path.exists, _GPU_DEVICES)):
        return ()
    script = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    count = int(done.stdout) if done.returncode == 0 else 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(visible[:count] or map(str, range(count)))


class LocalRunner:
    """Implements ``Runner`` on the processes of this machine."""

    rows_at_once = 200_000

    def __init__(self, config: ScoreConfig, view: ViewConfig, make_stages: MakeStages) -> None:
        self._config, self._view, self._make_stages = config, view, make_stages
        self._gpus = () if config.device == "cpu" else find_gpus()
        self._workers: list[_Worker] = []
        self._lost: dict[int, Loss] = {}
        self._num_deaths, self._max_deaths = 0, MAX_DEATHS_IN_A_ROW
        """Since a row was last finished; how many there may be."""

    def device(self) -> Literal["cpu", "cuda"]:
        """See ``Runner.device``."""
        return "cuda" if self._config.device == "cuda" or (self._config.device == "auto" and self._gpus) else "cpu"

    def run(self, rows: pa.Table, *, alone: bool = False) -> Generator[pa.Table, None, None]:
        """See ``Runner.run``."""
        layout = make_layout(
            self._config, self._view, num_cpus=num_cpus(), gpus=self._gpus, num_rows=1 if alone else rows.num_rows
        )
        blocks = _Blocks(rows, layout, alone=alone)
        # A row by itself that kills its worker is counted against the row.
        self._num_deaths, self._max_deaths = 0, rows.num_rows + 1 if alone else MAX_DEATHS_IN_A_ROW
        try:
            self._start_workers(layout)
            while blocks.num_left or any(worker.rows for worker in self._workers):
                self._deal(blocks, max_rows=1 if alone else layout.max_rows_in_flight)
                yield from self._answers(layout)
        finally:
            if any(worker.rows for worker in self._workers):  # nobody waits for these any more
                self.close()

    def why_lost(self, row: int) -> Loss:
        """See ``Runner.why_lost``."""
        return self._lost.get(row, UNKNOWN_LOSS)

    def close(self) -> None:
        """See ``Runner.close``."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.kill()

    def _start_workers(self, layout: LocalLayout) -> None:
        for gpu in layout.gpus[len(self._workers) :]:
            self._workers.append(self._start(layout, gpu))

    def _start(self, layout: LocalLayout, gpu: str | None) -> _Worker:
        spec = WorkerSpec(
            stages=self._make_stages(layout.threads_per_worker),
            num_decoders=layout.decoders_per_worker,
            num_predict_calls=layout.num_predict_calls,
            max_rows_per_call=layout.max_rows_per_call,
            num_waiting=_num_waiting(layout.decoders_per_worker),
        )
        return _Worker(spec, gpu)

    def _deal(self, blocks: _Blocks, *, max_rows: int) -> None:
        """Give out blocks until every worker has ``max_rows`` to do, or there are none; the idlest one comes first."""
        while blocks.num_left and (hungry := [worker for worker in self._workers if len(worker.rows) < max_rows]):
            min(hungry, key=lambda worker: len(worker.rows)).feed(blocks.take())

    def _answers(self, layout: LocalLayout) -> Iterator[pa.Table]:
        """What the workers have finished by now, after waiting for the first of it."""
        ready = multiprocessing.connection.wait([worker.connection for worker in self._workers], timeout=_LOOK_SECONDS)
        for number, worker in enumerate(self._workers):
            if worker.connection in ready:
                table = worker.receive()
                if table is not None:
                    self._num_deaths = 0
                    yield table
                    continue
            elif not worker.is_stuck(self._config.stall_seconds):
                continue
            self._workers[number] = self._replace(worker, layout)

    def _replace(self, worker: _Worker, layout: LocalLayout) -> _Worker:
        """Another worker in the place of one that died; its unfinished rows are lost."""
        loss = worker.end_and_explain()
        self._lost |= dict.fromkeys(worker.rows, loss)
        self._num_deaths += 1
        if self._num_deaths >= self._max_deaths:
            raise RunError(
                f"{self._num_deaths} workers died one after the other without finishing a video, the last because "
                f"{loss.message}. What is finished is kept, and the same command goes on from there"
            )
        return self._start(layout, worker.gpu)


class _Blocks:
    """Deals plan rows in blocks: small ones first, since the network has nothing to do until one is decoded, and small
    ones last, so that all workers end together."""

    def __init__(self, rows: pa.Table, layout: LocalLayout, *, alone: bool) -> None:
        self._rows, self._start = rows, 0
        self._num_lanes = max(1, layout.num_workers * layout.decoders_per_worker)
        self._max_rows = 1 if alone else layout.max_rows_per_block
        self._num_taken = 0

    @property
    def num_left(self) -> int:
        """Rows that nobody has yet."""
        return self._rows.num_rows - self._start

    def take(self) -> pa.Table:
        """The next block; there must be rows left."""
        growing = 2 ** min(20, self._num_taken // self._num_lanes)
        shrinking = self.num_left // (2 * CALLS_PER_DECODER * self._num_lanes)
        size = max(1, min(self._max_rows, growing, shrinking))
        block = self._rows.slice(self._start, size)
        self._start += block.num_rows
        self._num_taken += 1
        return block


class _Worker:
    """A worker process as the driver sees it."""

    def __init__(self, spec: WorkerSpec, gpu: str | None) -> None:
        self.gpu = gpu
        self.rows: set[int] = set()
        """Plan rows that it has and has not answered for."""
        self._heard_at = time.monotonic()
        self._error: tuple[bytes, str] | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self.connection, its_end = multiprocessing.Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", local_worker.__name__, str(its_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                env=_environment(gpu),
                pass_fds=[its_end.fileno()],
                start_new_session=True,  # Ctrl-C is for the driver
            )
        finally:
            its_end.close()
        self._send(pickle.dumps(spec))

    def feed(self, block: pa.Table) -> None:
        """Give it rows to do."""
        if not self.rows:
            self._heard_at = time.monotonic()
        self.rows.update(block[ROW].to_pylist())
        self._send(to_bytes(block))

    def receive(self) -> pa.Table | None:
        """Rows that it finished; None if it died. Raises what it says that no other worker could do either."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            return None
        self._heard_at = time.monotonic()
        tag, content = message[: local_worker.TAG_BYTES], memoryview(message)[local_worker.TAG_BYTES :]
        if tag == local_worker.ROWS:
            table = from_bytes(content)
            self.rows.difference_update(table[ROW].to_pylist())
            return table
        text = bytes(content).decode(errors="replace")
        if tag == local_worker.USAGE_ERROR:
            raise UsageError(text)
        if tag == local_worker.RUN_ERROR:
            raise RunError(text)
        self._error = tag, text
        return None

    def is_stuck(self, stall_seconds: float) -> bool:
        """True if it has had work for so long and said nothing."""
        return bool(self.rows) and time.monotonic() - self._heard_at > stall_seconds

    def end_and_explain(self) -> Loss:
        """End it, if it has not ended by itself. Returns what that means for its rows."""
        if self._error is not None:
            self.kill()
            return Loss(Status.MODEL_ERROR, self._error[1])
        try:
            has_hung_up = self.connection.poll()
            code = self._process.wait(_EXIT_SECONDS if has_hung_up else 0)
        except subprocess.TimeoutExpired:
            self.kill()
            return Loss(Status.MODEL_ERROR, "the worker gave no answer and was killed")
        words = self._last_words()
        self.kill()
        if code == -signal.SIGKILL:
            return Loss(Status.OUT_OF_MEMORY, "the worker was killed from outside, most likely because memory ran out")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return Loss(Status.MODEL_ERROR, f"the worker {how}{words}")

    def kill(self) -> None:
        """End it at once, with its threads; its sandboxes end when its ends of their sockets close."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._stderr.close()

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self.connection.send_bytes(data)
        except OSError:  # it died meanwhile: its end is what is received
            return

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _MAX_LAST_WORDS_BYTES))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"; it said: {lines[-1]}" if lines else ""


def _environment(gpu: str | None) -> dict[str, str]:
    """What a worker needs to know before it starts: libraries read these when they are loaded."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    if gpu is not None:
        return {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": gpu}
    return {**ENVIRONMENT, **os.environ, "PYTHONPATH": paths}
