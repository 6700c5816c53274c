"""How a run is going: on a terminal one bar that moves, elsewhere a plain line now and then.

Each line that stays is also an event for ``logging``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Self, TextIO

from tqdm import tqdm

from vidray import logs

PLAIN_SECONDS = 15.0
"""How often a plain line is printed where the output is no terminal (a job's log)."""
_LIVE_SECONDS = 0.5
_LINE = "{n:,} of {total:,} videos{postfix} · {rate_noinv_fmt} · {remaining} left"
_BAR = "{desc}{percentage:3.0f}% |{bar}| " + _LINE
_STEPS = "{percentage:3.0f}% |{bar:20}| {desc}"


class StepLine(str):
    """A line on how far something is, which on a terminal takes the place of the one before, as a bar.

    It is a string, so that whatever forwards lines (from a worker on another machine, for instance) needs not know.
    """

    done: int
    total: int

    def __new__(cls, text: str, *, done: int, total: int) -> Self:
        """``done`` of ``total`` steps."""
        line = super().__new__(cls, text)
        line.done, line.total = done, total
        return line

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, int]]:  # for pickle
        return (str(self),), {"done": self.done, "total": self.total}


class Progress:
    """Counts videos and says how it goes. Thread-safe; prints to stderr, so that stdout stays the summary's.

    Where events are written as JSON (`logs.configure`), it prints nothing besides.
    """

    def __init__(self, *, out: TextIO | None = None, logger: str = "vidray.progress") -> None:
        """``logger``: whose events its lines are."""
        self._out = io.StringIO() if logs.is_json() else out or sys.stderr
        self._logger = logging.getLogger(logger)
        self._is_live = self._out.isatty()
        self._lock = threading.Lock()
        self._stage = ""
        self._num_failed = 0
        self._bar: tqdm | None = None

    def say(self, text: str) -> None:
        """A line that stays, and an event."""
        self.show(text)
        self._logger.info("%s", text)

    def show(self, text: str) -> None:
        """A line that stays, of what is an event already."""
        with self._lock:
            self._clear()
            self._stage = ""
            print(text, file=self._out, flush=True)

    def log(self, line: str) -> None:
        """A line that stays, or a `StepLine`, which on a terminal does not."""
        if not self._is_live or not isinstance(line, StepLine):
            self.show(str(line))
            steps = {"done": line.done, "total": line.total} if isinstance(line, StepLine) else {}
            self._logger.info("%s", line, extra={"numbers": steps})
            return
        with self._lock:
            if self._bar is None:
                self._bar = self._make_bar(line.total, done=line.done, bar_format=_STEPS)
            self._bar.total, self._bar.n = line.total, line.done
            self._bar.set_description_str(str(line))

    def stage(self, text: str) -> None:
        """What is going on while there are no videos to count yet."""
        with self._lock:
            is_new = text.partition(":")[0] != self._stage.partition(":")[0]
            self._stage = text
            if is_new:
                self._logger.info("%s", text)
            if self._is_live:
                bar = self._show(None) if self._bar is None else self._bar
                bar.set_description_str(text if bar.total is None else f"{text} · ")
            elif is_new:
                print(text, file=self._out, flush=True)

    def clear(self) -> None:
        """Take the bar away: somebody else will print."""
        with self._lock:
            self._clear()

    def start(self, *, total: int, done: int) -> None:
        """Begin to count; ``done`` of ``total`` videos were there from an earlier attempt."""
        with self._lock:
            self._num_failed = 0
            self._show(total, done=done)

    def advance(self, *, done: int, failed: int) -> None:
        """So many more videos are done, of them ``failed`` not scored."""
        with self._lock:
            self._stage = ""
            self._num_failed += failed
            if self._bar is not None:
                self._bar.set_description_str("", refresh=False)
                self._bar.set_postfix_str(f"{self._num_failed:,} failed", refresh=False)
                self._bar.update(done)

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Show the time pass, also while nothing else happens."""
        stop = threading.Event()
        thread = threading.Thread(target=self._tick, args=(stop,), name="vidray-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.clear()

    def line(self) -> str:
        """What a plain line says now."""
        return self._stage or ("" if self._bar is None else str(self._bar))

    def _numbers(self) -> dict[str, int]:
        if self._bar is None or self._bar.total is None:
            return {}
        return {"done": self._bar.n, "total": self._bar.total, "failed": self._num_failed}

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(_LIVE_SECONDS if self._is_live else PLAIN_SECONDS):
            with self._lock:
                if not self._is_live:
                    print(self.line(), file=self._out, flush=True)
                    self._logger.info("%s", self.line(), extra={"numbers": self._numbers()})
                elif self._bar is not None:
                    self._bar.refresh()

    def _show(self, total: int | None, *, done: int = 0) -> tqdm:
        """A bar, or without a total a line of text. Unseen where there is no terminal: a log gets it as plain lines."""
        self._clear()
        bar_format = "{desc}" if total is None else _BAR if self._is_live else _LINE
        self._bar = self._make_bar(total, done=done, bar_format=bar_format)
        return self._bar

    def _make_bar(self, total: int | None, *, done: int, bar_format: str) -> tqdm:
        return tqdm(
            total=total,
            initial=done,
            unit=" videos",
            bar_format=bar_format,
            file=self._out if self._is_live else io.StringIO(),
            dynamic_ncols=self._is_live,
            leave=False,
            position=0,  # not below a bar that somebody else in this process has left open
        )

    def _clear(self) -> None:
        if self._bar is not None and self._is_live:
            self._bar.close()
            self._bar = None


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
