"""Where the time of a run goes: how long a worker was busy, and the sums over all rows."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

STAGES = ("fetch", "decode", "predict")
"""What workers do with a video, one after the other."""


class BusyClock:
    """Seconds in which at least one thread was inside, however many were: what a worker was busy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._since = 0.0
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._step(1)

    def __exit__(self, *_: object) -> None:
        self._step(-1)

    def take(self) -> float:
        """Seconds since this was last asked; all that it says add up to the whole."""
        with self._lock:
            self._count()
            seconds, self._seconds = self._seconds, 0.0
            return seconds

    def _step(self, change: int) -> None:
        with self._lock:
            self._count()
            self._num_inside += change

    def _count(self) -> None:
        now = time.perf_counter()
        if self._num_inside:
            self._seconds += now - self._since
        self._since = now


@dataclass
class StageTimes:
    """Sums up where the time of the streamed rows went; fed by the driver, table by table."""

    started: float = field(default_factory=time.perf_counter)
    first_row: float | None = None
    num_rows: int = 0
    bytes_fetched: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    decoders: set[str] = field(default_factory=set)
    predictors: set[str] = field(default_factory=set)
    sandboxes: set[str] = field(default_factory=set)
    """What the kernel closes to the decoders: one text, or several where machines differ."""
    window: tuple[float, float] | None = None

    def add(self, table: pa.Table) -> None:
        """Take the internal columns of some predicted rows."""
        self.first_row = self.first_row or time.perf_counter()
        self.num_rows += table.num_rows
        self.bytes_fetched += pc.sum(table["bytes_fetched"]).as_py() or 0
        for stage in STAGES:
            self.seconds[stage] += pc.sum(table[f"{stage}_seconds"]).as_py() or 0.0
        self.decoders |= set(pc.unique(table["decoder"]).drop_null().to_pylist())
        self.predictors |= set(pc.unique(table["predictor"]).drop_null().to_pylist())
        self.sandboxes |= set(pc.unique(table["sandbox"]).drop_null().to_pylist())
        self._widen(pc.min(table["predict_started_at"]).as_py(), pc.max(table["predict_ended_at"]).as_py())

    def _widen(self, start: float | None, end: float | None) -> None:
        if start is None or end is None:
            return
        self.window = (min(start, self.window[0]), max(end, self.window[1])) if self.window else (start, end)

    def busy(self, *, fetch_threads: int) -> dict[str, float]:
        """Share of the time that each stage's workers were at work, from the first prediction to the last."""
        if self.window is None:
            return dict.fromkeys(STAGES, 0.0)
        seconds = max(self.window[1] - self.window[0], 1e-9)
        workers = {
            "fetch": len(self.decoders) * fetch_threads,
            "decode": len(self.decoders),
            "predict": len(self.predictors),
        }
        return {stage: min(1.0, self.seconds[stage] / (n * seconds)) if n else 0.0 for stage, n in workers.items()}
