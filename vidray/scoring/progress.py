"""The live line of a run: on a terminal one line that moves, elsewhere a plain line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TextIO

PLAIN_SECONDS = 15.0
"""How often a plain line is printed where the output is no terminal (a job's log)."""


class Progress:
    """Counts videos and says how it goes. Thread-safe; prints to stderr, so that stdout stays the summary's."""

    def __init__(self, *, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._is_live = self._out.isatty()
        self._lock = threading.Lock()
        self._stage = ""
        self._total = self._done = self._failed = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=60)
        self._width = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._clear()
            self._stage = ""
            print(text, file=self._out, flush=True)

    def stage(self, text: str) -> None:
        """What is going on while there are no videos to count yet."""
        with self._lock:
            is_new = text.partition(":")[0] != self._stage.partition(":")[0]
            self._stage = text
            if self._is_live or is_new:
                self._draw()

    def clear(self) -> None:
        """Take the live line away: somebody else will print."""
        with self._lock:
            self._clear()

    def start(self, *, total: int, done: int) -> None:
        """Begin to count; ``done`` of ``total`` videos were there from an earlier attempt."""
        with self._lock:
            self._total, self._done, self._failed = total, done, 0
            self._recent.clear()

    def advance(self, *, done: int, failed: int) -> None:
        """So many more videos are done, of them ``failed`` not scored."""
        with self._lock:
            self._stage = ""
            self._done += done
            self._failed += failed
            self._recent.append((time.monotonic(), done))

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Redraw in the background."""
        stop = threading.Event()
        thread = threading.Thread(target=self._tick, args=(stop,), name="vidray-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with self._lock:
                self._clear()

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(0.5 if self._is_live else PLAIN_SECONDS):
            with self._lock:
                self._draw()

    def line(self) -> str:
        """What the live line says now."""
        if self._stage:
            return self._stage
        rate = self._rate()
        eta = format_seconds((self._total - self._done) / rate) if rate else "?"
        return f"{self._done:,} of {self._total:,} videos · {self._failed:,} failed · {rate:.1f} videos/s · {eta} left"

    def _rate(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        seconds = time.monotonic() - self._recent[0][0]
        return sum(done for _, done in list(self._recent)[1:]) / max(seconds, 1e-9)

    def _draw(self) -> None:
        text = self.line()
        if not self._is_live:
            print(text, file=self._out, flush=True)
            return
        print("\r" + text.ljust(self._width), end="", file=self._out, flush=True)
        self._width = len(text)

    def _clear(self) -> None:
        if self._is_live and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._out, flush=True)
            self._width = 0


def format_seconds(seconds: float) -> str:
    """``4000`` → ``1 h 07 min``; ``75`` → ``1 min 15 s``; ``8.2`` → ``8 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def format_bytes(num_bytes: float) -> str:
    """``1536`` → ``1.5 kB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
