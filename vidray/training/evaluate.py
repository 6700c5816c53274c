"""Exact evaluation over all ranks: every video once, none dropped, through the same functions as scoring.

Rank r of W evaluates the videos r, r + W, r + 2W, …; the results of all ranks are merged by the video's row.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vidray.errors import RunError
from vidray.models.families import Family
from vidray.models.predict import aggregate, forward_views
from vidray.training.data.bad_videos import BadVideo, KeepBadVideos, check_failure_rate
from vidray.training.data.clips import ClipSpec, MadeClip, job_of
from vidray.training.data.pools import LocalClipPool, MakeClipPool
from vidray.training.data.prefetcher import Prefetcher
from vidray.training.loop.ranks import Ranks
from vidray.training.metrics import classification_metrics, top_k_accuracy
from vidray.types import Limits, ViewConfig

MAX_DECODERS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSpec:
    """What is evaluated, and how."""

    table: pa.Table
    """Labelled rows (``LABELLED_SCHEMA``), the same on every rank."""
    labels: tuple[str, ...]
    family: Family
    view: ViewConfig
    limits: Limits
    problem_type: str = "single_label_classification"
    num_decoders: int | None = None
    """Threads of this process that decode, where there is no ``make_pool``; None: as many as it has CPUs."""
    make_pool: MakeClipPool | None = None
    """Where videos are decoded; None: threads of this process."""
    max_failure_rate: float = 1.0
    keep_bad_videos: KeepBadVideos = lambda table: None
    """Called on every rank where there are more than that."""
    on_video: Callable[[], None] = lambda: None
    """Called after each video of this rank."""


@dataclass(kw_only=True, slots=True)
class EvalResults:
    """What the model said about each video."""

    logits: dict[int, np.ndarray] = field(default_factory=dict)
    """Row of the table → (V, num_labels) float32 logits of its views."""
    bad_videos: dict[int, BadVideo] = field(default_factory=dict)
    """Row of the table → why it could not be decoded."""


def evaluate(
    model: torch.nn.Module, spec: EvalSpec, ranks: Ranks, *, dtype: torch.dtype = torch.float32, autocast: bool = False
) -> tuple[dict[str, Any], EvalResults]:
    """Evaluate a model. Returns its figures and what they come from, the same on every rank.

    Args:
        model: in eval mode, on the rank's device.
        dtype: of the model's weights.
        autocast: compute in bf16 with float32 weights, as in training.

    Raises:
        TooManyFailuresError: more videos failed than allowed, on all ranks alike.
        RunError: none could be decoded.
    """
    own = EvalResults()
    for made in _decoded(spec, range(ranks.rank, spec.table.num_rows, ranks.world_size)):
        spec.on_video()
        if made.frames is None:
            own.bad_videos[made.row] = BadVideo(status=made.status.value, message=made.message)
            continue
        with torch.inference_mode(), torch.autocast(ranks.device.type, torch.bfloat16, enabled=autocast):
            own.logits[made.row] = _logits(model, made.frames, spec, ranks.device, dtype)
    results = _merge(ranks.gather(own))
    _check_failures(results, spec)
    return summarise(results, spec), results


def summarise(results: EvalResults, spec: EvalSpec) -> dict[str, Any]:
    """Video-level figures (views aggregated as in scoring), and the accuracy of single views."""
    rows = sorted(results.logits)
    labels = spec.table["label_id"].to_numpy().astype(np.int64)[rows]
    scores = np.stack([video_scores(results.logits[row], spec) for row in rows])
    views = np.concatenate([results.logits[row] for row in rows])
    per_view = labels.repeat([len(results.logits[row]) for row in rows])
    figures = classification_metrics(scores, labels, names=spec.labels)
    return {
        **figures,
        "view_accuracy": top_k_accuracy(views, per_view, k=1),
        "view_top5_accuracy": top_k_accuracy(views, per_view, k=5),
        "num_views": spec.view.num_views,
        "num_failed": len(results.bad_videos),
    }


def video_scores(logits_VC: np.ndarray, spec: EvalSpec) -> np.ndarray:
    """(num_labels,) probabilities of a video."""
    logits = torch.from_numpy(logits_VC)
    return aggregate(logits, aggregation=spec.view.aggregation, problem_type=spec.problem_type).numpy()


def _logits(
    model: torch.nn.Module, views_VTHWC: np.ndarray, spec: EvalSpec, device: torch.device, dtype: torch.dtype
) -> np.ndarray:
    """(V, num_labels) float32 of one video's views, in batches of at most eight clips' worth."""
    views = torch.from_numpy(views_VTHWC).to(device)
    parts = [forward_views(model, part, family=spec.family, view=spec.view, dtype=dtype) for part in views.split(8)]
    return torch.cat(parts).cpu().numpy()


def _merge(results_by_rank: list[EvalResults]) -> EvalResults:
    merged = EvalResults()
    for results in results_by_rank:
        merged.logits |= results.logits
        merged.bad_videos |= results.bad_videos
    return merged


def _check_failures(results: EvalResults, spec: EvalSpec) -> None:
    num_rows, num_failed = spec.table.num_rows, len(results.bad_videos)
    if len(results.logits) + num_failed != num_rows:
        raise RunError(f"{num_rows} videos were to be evaluated, but {len(results.logits)} + {num_failed} were")
    check_failure_rate(
        spec.table,
        results.bad_videos,
        max_rate=spec.max_failure_rate,
        what="validation",
        keep=spec.keep_bad_videos,
    )
    if num_failed == num_rows:
        example = next((f"; for instance {bad.status}: {bad.message}" for bad in results.bad_videos.values()), "")
        raise RunError(f"none of the {num_rows} videos to evaluate could be decoded{example}")


def _decoded(spec: EvalSpec, rows: range) -> Iterator[MadeClip]:
    """The views of these rows, in order; a bounded number is under way at any time."""
    clip_spec = ClipSpec(view=spec.view, limits=spec.limits)
    make_pool = spec.make_pool or functools.partial(_local_pool, spec=spec, num_rows=len(rows))
    jobs = (job_of(spec.table, row) for row in rows)
    with (
        contextlib.closing(make_pool(clip_spec)) as pool,
        Prefetcher(pool, jobs, max_ahead=2 * pool.num_parallel, group_size=1) as prefetcher,
    ):
        for _ in rows:
            if (clip := prefetcher.next()) is not None:  # no job is None here
                yield clip


def _local_pool(clip_spec: ClipSpec, *, spec: EvalSpec, num_rows: int) -> LocalClipPool:
    """A thread for each CPU, but no more than there are videos: each starts a process."""
    num_threads = spec.num_decoders or min(len(os.sched_getaffinity(0)), MAX_DECODERS)
    return LocalClipPool(clip_spec, num_parallel=max(1, min(num_threads, num_rows)))
