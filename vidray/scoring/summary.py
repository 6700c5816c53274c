"""How a run went, in numbers: what became of every listed object, and where the time went."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vidray.scoring.plan import Plan
from vidray.scoring.progress import format_seconds
from vidray.types import Status


@dataclass
class Clock:
    """Sums up where the time of the streamed rows went; fed by the driver, table by table."""

    started: float = field(default_factory=time.perf_counter)
    first_row: float | None = None
    num_rows: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    decoders: set[str] = field(default_factory=set)
    predictors: set[str] = field(default_factory=set)
    window: tuple[float, float] | None = None

    def add(self, table: pa.Table) -> None:
        """Take the internal columns of some predicted rows."""
        self.first_row = self.first_row or time.perf_counter()
        self.num_rows += table.num_rows
        for stage in ("fetch", "decode", "predict"):
            self.seconds[stage] += pc.sum(table[f"{stage}_seconds"]).as_py() or 0.0
        self.decoders |= set(pc.unique(table["decoder"]).drop_null().to_pylist())
        self.predictors |= set(pc.unique(table["predictor"]).drop_null().to_pylist())
        self._widen(pc.min(table["predict_started_at"]).as_py(), pc.max(table["predict_ended_at"]).as_py())

    def _widen(self, start: float | None, end: float | None) -> None:
        if start is None or end is None:
            return
        self.window = (min(start, self.window[0]), max(end, self.window[1])) if self.window else (start, end)

    def busy(self, *, fetch_threads: int) -> dict[str, float]:
        """Share of the time that each stage's workers were at work, from the first prediction to the last."""
        if self.window is None:
            return dict.fromkeys(("fetch", "decode", "predict"), 0.0)
        seconds = max(self.window[1] - self.window[0], 1e-9)
        workers = {
            "fetch": len(self.decoders) * fetch_threads,
            "decode": len(self.decoders),
            "predict": len(self.predictors),
        }
        return {stage: min(1.0, self.seconds[stage] / (n * seconds)) if n else 0.0 for stage, n in workers.items()}


def make_summary(
    plan: Plan, keys: pa.Table, clock: Clock, *, fetch_threads: int, max_failure_rate: float
) -> dict[str, Any]:
    """What ``summary.json`` says. ``keys``: of every row in the run's parts."""
    by_status = Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(keys["status"]).to_pylist()})
    num_scored = by_status.pop(Status.OK.value, 0)
    num_failed = sum(by_status.values())
    too_many = num_failed > max_failure_rate * max(keys.num_rows, 1)
    return {
        **asdict(plan.header),
        "source": list(plan.header.source),
        "outcome": "too_many_failures" if too_many else "success",
        "max_failure_rate": max_failure_rate,
        "num_planned": plan.rows.num_rows,
        "num_scored": num_scored,
        "num_failed": num_failed,
        "failed_by_status": dict(by_status.most_common()),
        "resumed": plan.is_resumed,
        "this_process": _timing(clock, fetch_threads=fetch_threads),
    }


def _timing(clock: Clock, *, fetch_threads: int) -> dict[str, Any]:
    now = time.perf_counter()
    total = sum(clock.seconds.values())
    busy = clock.busy(fetch_threads=fetch_threads)
    streaming = clock.window[1] - clock.window[0] if clock.window else 0.0
    rate = clock.num_rows / streaming if streaming > 0 else 0.0
    return {
        "num_videos": clock.num_rows,
        "seconds": now - clock.started,
        "start_up_seconds": (clock.first_row or now) - clock.started,
        "videos_per_second": rate,
        "videos_per_second_per_predictor": rate / len(clock.predictors) if clock.predictors else 0.0,
        "num_decoders": len(clock.decoders),
        "num_predictors": len(clock.predictors),
        "stage_seconds": dict(clock.seconds),
        "stage_share": {stage: seconds / total if total else 0.0 for stage, seconds in clock.seconds.items()},
        "stage_busy": busy,
        "held_back_by": max(busy, key=busy.__getitem__) if any(busy.values()) else None,
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The summary for the screen."""
    timing = summary["this_process"]
    start_up, rate = format_seconds(timing["start_up_seconds"]), timing["videos_per_second"]
    lines = [
        f"run {summary['run_id']}: {summary['outcome'].replace('_', ' ')}",
        f"  listed        {summary['num_listed']:>10,}",
        f"  already done  {summary['num_already_done']:>10,}",
        f"  scored        {summary['num_scored']:>10,}",
        f"  failed        {summary['num_failed']:>10,}{_statuses(summary['failed_by_status'])}",
        f"  {timing['num_videos']:,} videos in {format_seconds(timing['seconds'])} "
        f"({start_up} of it start-up), then {rate:.1f} videos/s, "
        f"{timing['videos_per_second_per_predictor']:.1f} per predictor",
    ]
    for stage in ("fetch", "decode", "predict"):
        seconds = timing["stage_seconds"].get(stage, 0.0)
        lines.append(
            f"  {stage:<8} {seconds:9.1f} s  {timing['stage_share'].get(stage, 0.0):4.0%} of the work, "
            f"workers {timing['stage_busy'][stage]:.0%} busy"
        )
    if timing["held_back_by"]:
        lines.append(f"  held back by: {_HINTS[timing['held_back_by']]}")
    return "\n".join(lines)


_HINTS = {
    "fetch": "fetching (more --fetch-threads or --decoders, or compute nearer to the bucket)",
    "decode": "decoding (more --decoders: add CPUs)",
    "predict": "the model (more --predictors: add GPUs; or --precision bf16, fewer --views, a larger --stride)",
}


def _statuses(by_status: dict[str, int]) -> str:
    return "  (" + ", ".join(f"{count:,} {status}" for status, count in by_status.items()) + ")" if by_status else ""
