"""What a report of an evaluation shows beyond the figures: kept beside the checkpoint as plain values, frames included,
so that the page can be made again where neither the videos nor the network are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vidray.errors import VideoError
from vidray.pages.blocks import Strip
from vidray.pages.strips import clip_spans, frame_times, make_strip
from vidray.sandbox.sandbox import Sandbox
from vidray.sources.rows import time_range_of, video_of
from vidray.storage.fetch import fetch
from vidray.training.evaluate import EvalResults, EvalSpec, video_scores
from vidray.training.metrics import NUM_BINS

NUM_MISTAKES = 12
NUM_FRAMES = 6
NUM_TENTHS = 20
"""Bins of the probability of the actual class."""


def report_facts(figures: dict[str, Any], results: EvalResults, spec: EvalSpec) -> dict[str, Any]:
    """Plain values for JSON.

    Returns:
        ``confusion``: [actual, predicted, count] of each pair of classes that occurs. ``reliability``: of each bin of
        confidence ``num_videos``, mean ``confidence`` and ``accuracy``. ``actual_class``: how many videos give their
        actual class a probability in each twentieth, ``correct`` and ``wrong`` ones apart. ``mistakes``: the surest
        ones with their frames. ``num_failed`` and ``failed_by_status``.
    """
    rows = sorted(results.logits)
    scores_NC = np.stack([video_scores(results.logits[row], spec) for row in rows])
    labels_N = spec.table["label_id"].to_numpy().astype(np.int64)[rows]
    matrix = np.asarray(figures["confusion"])
    return {
        "labels": list(spec.labels),
        "confusion": [[int(a), int(p), int(matrix[a, p])] for a, p in np.argwhere(matrix)],
        "reliability": reliability(scores_NC, labels_N),
        "actual_class": actual_class_histogram(scores_NC, labels_N),
        "mistakes": _mistakes(rows, scores_NC, labels_N, spec),
        "num_failed": len(results.bad_videos),
    }


def reliability(scores_NC: np.ndarray, labels_N: np.ndarray) -> list[dict[str, float]]:
    """Of each of ``NUM_BINS`` equal bins of confidence that has videos: how many, how sure, and how often correct."""
    confidence, is_correct = scores_NC.max(axis=1), scores_NC.argmax(axis=1) == labels_N
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return [
        {
            "num_videos": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(is_correct[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def actual_class_histogram(scores_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, list[int]]:
    """Counts of videos by the probability of their actual class, for those predicted correctly and others."""
    probability, is_correct = scores_NC[np.arange(len(labels_N)), labels_N], scores_NC.argmax(axis=1) == labels_N
    edges = np.linspace(0, 1, NUM_TENTHS + 1)
    return {
        name: np.histogram(np.clip(probability[mask], 0, 1), edges)[0].tolist()
        for name, mask in (("correct", is_correct), ("wrong", ~is_correct))
    }


def worst_mistakes(scores_NC: np.ndarray, labels_N: np.ndarray) -> list[int]:
    """Places of the mistakes that the model was surest of, the surest first."""
    wrong = np.flatnonzero(scores_NC.argmax(axis=1) != labels_N)
    return wrong[np.argsort(-scores_NC[wrong].max(axis=1), kind="stable")][:NUM_MISTAKES].tolist()


def _mistakes(rows: Sequence[int], scores_NC: np.ndarray, labels_N: np.ndarray, spec: EvalSpec) -> list[dict[str, Any]]:
    places = worst_mistakes(scores_NC, labels_N)
    if not places:
        return []
    with Sandbox(view=spec.view, limits=spec.limits) as sandbox:
        return [_mistake(rows[at], scores_NC[at], int(labels_N[at]), spec, sandbox) for at in places]


def _mistake(row: int, scores_C: np.ndarray, label: int, spec: EvalSpec, sandbox: Sandbox) -> dict[str, Any]:
    values = spec.table.slice(row, 1).to_pylist()[0]
    best = np.argsort(-scores_C, kind="stable")[:3].tolist()
    strip, clip = _strip(values, spec, sandbox)
    return {
        "uri": values["uri"],
        "actual": spec.labels[label],
        "actual_score": float(scores_C[label]),
        "top_k": [[spec.labels[one], float(scores_C[one])] for one in best],
        "clip": clip,
        "frames": list(strip.frames),
        "times": list(strip.times),
        "problem": strip.problem,
    }


def _strip(values: dict[str, Any], spec: EvalSpec, sandbox: Sandbox) -> tuple[Strip, list[float] | None]:
    """Frames of the middle view, as the model saw them, and when that clip starts and ends."""
    time_range = time_range_of(values)
    try:
        views_VTHWC, info = sandbox.decode(fetch(video_of(values), limits=spec.limits), time_range=time_range)
    except VideoError as error:  # it was there a moment ago; a picture is no reason to lose a finished run
        return Strip(problem=f"no frames: {error.status} ({error.message})"), None
    view = len(views_VTHWC) // 2
    spans = clip_spans(info, view=spec.view, time_range=time_range)
    span = spans[view // spec.view.num_crops] if spans else None
    num_frames = len(views_VTHWC[view])
    chosen = np.linspace(0, num_frames - 1, min(NUM_FRAMES, num_frames)).round().astype(int)
    times = frame_times(span, info.fps, num_frames=num_frames)
    strip = make_strip(views_VTHWC[view][chosen], [times[at] for at in chosen] if times else [])
    return strip, [float(span.start_seconds), float(span.end_seconds)] if span else None
