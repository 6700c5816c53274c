"""Where the time of training steps goes, on CPUs and GPUs."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

PHASES = ("data_wait", "forward_backward", "communication", "optimizer")


class StepTimer:
    """Adds up seconds by phase.

    Work on a GPU is only queued, so there events are put into its queue and read later: the time between the end of
    a step and the arrival of its next batch, for instance, is what the GPU stood idle for data.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as ``name``."""
        if self._on_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Seconds since the last reading: ``total`` and by phase. Waits for the GPU."""
        if self._on_cuda:
            torch.cuda.synchronize()
            for name, start, end in self._events:
                self._seconds[name] += start.elapsed_time(end) / 1000
        seconds = {name: self._seconds[name] for name in PHASES}
        now = time.perf_counter()
        seconds["total"] = now - self._started
        self._seconds.clear()
        self._events.clear()
        self._started = now
        return seconds
