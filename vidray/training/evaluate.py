"""Exact evaluation over all ranks: every video once, none dropped, through the same functions as scoring.

Rank r of W judges the videos r, r + W, r + 2W, …; what comes together in the end is keyed by the video's row.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vidray.errors import RunError, TooManyFailuresError
from vidray.models.families import Family
from vidray.models.predict import aggregate, forward_views
from vidray.training.data.clips import ClipJob, ClipSpec, MadeClip, time_range_of, video_of
from vidray.training.data.pools import LocalPool, MakePool, Pending
from vidray.training.loop.ranks import Ranks
from vidray.training.metrics import classification_metrics, top_k_accuracy
from vidray.types import Limits, ViewConfig

MAX_DECODERS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """What is evaluated how."""

    table: pa.Table
    """Labelled rows (``LABELLED_SCHEMA``), the same on every rank."""
    labels: tuple[str, ...]
    family: Family
    view: ViewConfig
    limits: Limits
    problem_type: str = "single_label_classification"
    num_decoders: int | None = None
    """Threads of this process that decode, where there is no ``make_pool``; None: as many as it has CPUs."""
    make_pool: MakePool | None = None
    """Where videos are decoded; None: threads of this process."""
    max_failure_rate: float = 1.0


@dataclass(kw_only=True, slots=True)
class Verdicts:
    """What the model said about each video."""

    logits: dict[int, np.ndarray] = field(default_factory=dict)
    """Row of the table → (V, num_labels) float32 logits of its views."""
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row of the table → (status, message) of what could not be decoded."""


def evaluate(
    model: torch.nn.Module, judge: Judge, ranks: Ranks, *, dtype: torch.dtype = torch.float32, autocast: bool = False
) -> tuple[dict[str, Any], Verdicts]:
    """Figures and what they come from, the same on every rank.

    Args:
        model: in eval mode, on the rank's device.
        dtype: of the model's weights.
        autocast: compute in bf16 with float32 weights, as in training.

    Raises:
        TooManyFailuresError: more videos failed than allowed, on all ranks alike.
        RunError: none could be decoded.
    """
    own = Verdicts()
    for made in _decoded(judge, range(ranks.rank, judge.table.num_rows, ranks.world_size)):
        if made.frames is None:
            own.failures[made.row] = (made.status.value, made.message)
            continue
        with torch.inference_mode(), torch.autocast(ranks.device.type, torch.bfloat16, enabled=autocast):
            own.logits[made.row] = _logits(model, made.frames, judge, ranks.device, dtype)
    together = _merge(ranks.gather(own))
    _check(together, judge)
    return summarise(together, judge), together


def summarise(verdicts: Verdicts, judge: Judge) -> dict[str, Any]:
    """Video-level figures (views aggregated as in scoring), and the accuracy of single views."""
    rows = sorted(verdicts.logits)
    labels = judge.table["label_id"].to_numpy().astype(np.int64)[rows]
    scores = np.stack([video_scores(verdicts.logits[row], judge) for row in rows])
    views = np.concatenate([verdicts.logits[row] for row in rows])
    per_view = labels.repeat([len(verdicts.logits[row]) for row in rows])
    figures = classification_metrics(scores, labels, names=judge.labels)
    return {
        **figures,
        "view_accuracy": top_k_accuracy(views, per_view, k=1),
        "view_top5_accuracy": top_k_accuracy(views, per_view, k=5),
        "num_views": judge.view.num_views,
        "num_failed": len(verdicts.failures),
    }


def video_scores(logits_VC: np.ndarray, judge: Judge) -> np.ndarray:
    """(num_labels,) probabilities of a video."""
    logits = torch.from_numpy(logits_VC)
    return aggregate(logits, aggregation=judge.view.aggregation, problem_type=judge.problem_type).numpy()


def _logits(
    model: torch.nn.Module, views_VTHWC: np.ndarray, judge: Judge, device: torch.device, dtype: torch.dtype
) -> np.ndarray:
    """(V, num_labels) float32 of one video's views, in batches of at most eight clips' worth."""
    views = torch.from_numpy(views_VTHWC).to(device)
    parts = [forward_views(model, part, family=judge.family, view=judge.view, dtype=dtype) for part in views.split(8)]
    return torch.cat(parts).cpu().numpy()


def _merge(all_verdicts: list[Verdicts]) -> Verdicts:
    together = Verdicts()
    for verdicts in all_verdicts:
        together.logits |= verdicts.logits
        together.failures |= verdicts.failures
    return together


def _check(verdicts: Verdicts, judge: Judge) -> None:
    num_rows, num_failed = judge.table.num_rows, len(verdicts.failures)
    if len(verdicts.logits) + num_failed != num_rows:
        raise RunError(f"{num_rows} videos were to be evaluated, but {len(verdicts.logits)} + {num_failed} were")
    example = next((f"; for instance {status}: {message}" for status, message in verdicts.failures.values()), "")
    if num_failed > judge.max_failure_rate * num_rows:
        raise TooManyFailuresError(
            f"{num_failed} of {num_rows} validation videos failed, more than --max-failure-rate "
            f"{judge.max_failure_rate:g} allows{example}"
        )
    if num_failed == num_rows:
        raise RunError(f"none of the {num_rows} videos to evaluate could be decoded{example}")


def _decoded(judge: Judge, rows: range) -> Iterator[MadeClip]:
    """The views of these rows, in order; a bounded number is under way at any time."""
    spec = ClipSpec(view=judge.view, limits=judge.limits)
    with contextlib.closing(judge.make_pool(spec) if judge.make_pool else _threads(spec, judge, len(rows))) as pool:
        pending: deque[Pending] = deque()
        try:
            for row in rows:
                values = judge.table.slice(row, 1).to_pylist()[0]
                pending.append(
                    pool.submit([ClipJob(row=row, video=video_of(values), time_range=time_range_of(values))])
                )
                if len(pending) > 2 * pool.num_parallel:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for clips in pending:
                clips.cancel()


def _threads(spec: ClipSpec, judge: Judge, num_rows: int) -> LocalPool:
    """A thread for each CPU, but no more than there are videos: each starts a process."""
    num_threads = judge.num_decoders or min(len(os.sched_getaffinity(0)), MAX_DECODERS)
    return LocalPool(spec, num_parallel=max(1, min(num_threads, num_rows)))
