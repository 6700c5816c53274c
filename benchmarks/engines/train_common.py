"""What the engines of the training benchmark share: how they are called, and the marks that they leave."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """One engine's work."""

    videos: Path
    """A folder with ``train/<label>/<video>`` and ``val/<label>/<video>``."""
    model: Path
    """A checkpoint folder that Transformers can load."""
    output: Path
    """Where the JSON of ``Marks`` goes."""
    num_clips: int
    """Clips to train on."""
    batch_size: int
    """Clips per step; the last step of an epoch may have fewer."""
    mark_every: int
    """Steps between two marks."""
    extra: str | None
    """What the engine's variants differ in."""

    @property
    def num_steps(self) -> int:
        """Steps with whole batches."""
        return self.num_clips // self.batch_size


def parse_job(description: str | None) -> TrainJob:
    """The job from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("videos", "model", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("num-clips", "batch-size", "mark-every"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--extra")
    return TrainJob(**vars(parser.parse_args()))


@dataclass(kw_only=True, slots=True)
class Marks:
    """How far training was when, and what it had cost: what happened between two marks is a steady state."""

    marks: list[dict[str, float]] = field(default_factory=list)
    """``clips`` so far, ``seconds`` on a clock, ``cpu_seconds`` of this process and all that it started."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds after the first mark by phase, as far as the engine can tell."""

    def add(self, num_clips: int) -> None:
        """Set a mark."""
        mark = {"clips": num_clips, "seconds": time.perf_counter(), "cpu_seconds": cpu_seconds()}
        self.marks.append(mark)

    def add_phases(self, seconds: dict[str, float]) -> None:
        """Count time; what comes before the first mark is warm-up and not counted."""
        if self.marks:
            for name, value in seconds.items():
                self.phases[name] = self.phases.get(name, 0.0) + value

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps({"marks": self.marks, "phases": self.phases}))


def cpu_seconds() -> float:
    """CPU time so far of this process, of all that descend from it, and of those that they waited for."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
