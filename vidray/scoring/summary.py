"""How a run went, in numbers: what became of every listed object, and where the time went."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from vidray.progress import format_bytes, format_seconds
from vidray.scoring.accounting import Untried
from vidray.scoring.plan import Plan
from vidray.scoring.timing import StageTimes
from vidray.types import Status


def make_summary(
    plan: Plan,
    by_status: Counter[str],
    times: StageTimes,
    *,
    fetch_threads: int,
    max_failure_rate: float,
    untried: dict[str, Untried],
) -> dict[str, Any]:
    """What ``summary.json`` says. ``by_status``: how many rows of the run's parts have each."""
    failed = Counter({status: count for status, count in by_status.items() if status != Status.OK.value})
    too_many = failed.total() > max_failure_rate * max(by_status.total(), 1)
    return {
        **asdict(plan.header),
        "source": list(plan.header.source),
        "outcome": "too_many_failures" if too_many else "success",
        "max_failure_rate": max_failure_rate,
        "num_planned": plan.rows.num_rows,
        "num_scored": by_status[Status.OK.value],
        "num_failed": failed.total(),
        "failed_by_status": dict(failed.most_common()),
        "untried": {name: asdict(one) for name, one in untried.items()},
        "resumed": plan.is_resumed,
        "sandbox": sorted(times.sandboxes),
        "this_process": _timing(times, fetch_threads=fetch_threads),
    }


def _timing(times: StageTimes, *, fetch_threads: int) -> dict[str, Any]:
    now = time.perf_counter()
    total = sum(times.seconds.values())
    busy = times.busy(fetch_threads=fetch_threads)
    streaming = times.window[1] - times.window[0] if times.window else 0.0
    rate = times.num_rows / streaming if streaming > 0 else 0.0
    return {
        "num_videos": times.num_rows,
        "bytes_fetched": times.bytes_fetched,
        "seconds": now - times.started,
        "start_up_seconds": (times.first_row or now) - times.started,
        "videos_per_second": rate,
        "videos_per_second_per_predictor": rate / len(times.predictors) if times.predictors else 0.0,
        "num_decoders": len(times.decoders),
        "num_predictors": len(times.predictors),
        "stage_seconds": dict(times.seconds),
        "stage_share": {stage: seconds / total if total else 0.0 for stage, seconds in times.seconds.items()},
        "stage_busy": busy,
        "held_back_by": max(busy, key=busy.__getitem__)
        if streaming >= _TELLING_SECONDS and any(busy.values())
        else None,
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
        *(f"  {name:<12}  {_untried(one)}" for name, one in summary["untried"].items() if one["count"]),
        *(f"  {line}" for line in format_files_left(summary["files_left"])),
        f"  {timing['num_videos']:,} videos in {format_seconds(timing['seconds'])} "
        f"({start_up} of it start-up), then {rate:.1f} videos/s, "
        f"{timing['videos_per_second_per_predictor']:.1f} per predictor",
    ]
    for stage in ("fetch", "decode", "predict"):
        seconds = timing["stage_seconds"].get(stage, 0.0)
        lines.append(
            f"  {stage:<8} {seconds:9.1f} s  {timing['stage_share'].get(stage, 0.0):4.0%} of the work, "
            f"workers {timing['stage_busy'][stage]:.0%} busy"
            + (f", {format_bytes(timing['bytes_fetched'])}" if stage == "fetch" else "")
        )
    lines += [f"  sandbox: {text}" for text in summary["sandbox"]]
    if timing["held_back_by"]:
        lines.append(f"  held back by: {_HINTS[timing['held_back_by']]}")
    return "\n".join(lines)


def format_files_left(left: dict[str, int]) -> list[str]:
    """A line on the files that lie in the folders and do not count as videos, by extension; none if there are none."""
    if not left:
        return []
    kinds = [f"{count:,} {kind}" for kind, count in left.items()]
    more = [f"{len(kinds) - _MAX_KINDS} other kinds"] if len(kinds) > _MAX_KINDS else []
    files = "file" if sum(left.values()) == 1 else "files"
    kinds = kinds[:_MAX_KINDS] + more
    return [f"{sum(left.values()):,} other {files} left: {', '.join(kinds)}; --extensions takes more"]


_MAX_KINDS = 8
_TELLING_SECONDS = 10.0
"""A shorter run does not tell which stage holds it back: its stages wait for each other to begin and to end."""

_HINTS = {
    "fetch": "fetching (more --fetch-threads or --decoders, or compute nearer to the bucket)",
    "decode": "decoding (more --decoders: add CPUs)",
    "predict": "the model (more --predictors: add GPUs; or --precision bf16, fewer --views, a larger --stride)",
}


def _untried(one: dict[str, Any]) -> str:
    return f"{one['count']:>10,}  (mostly {one['status']}, such as {one['example']})"


def _statuses(by_status: dict[str, int]) -> str:
    return "  (" + ", ".join(f"{count:,} {status}" for status, count in by_status.items()) + ")" if by_status else ""
