"""How good moments are: average precision at several overlaps, as ActivityNet's detection task defines it.

Fabian Caba Heilbron et al., ActivityNet: A Large-Scale Video Benchmark for Human Activity Understanding, CVPR 2015, and
its evaluation, where precision is interpolated: at each recall the best precision at that recall or a higher one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vidray.results.moments import Moment

OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""tIoU, length of the intersection by that of the union, from which a moment counts as found."""


def overlap(start: float, end: float, truths: np.ndarray) -> np.ndarray:
    """tIoU of an interval with each of ``truths``, (N, 2) starts and ends: (N,) from 0 to 1."""
    common = np.minimum(end, truths[:, 1]) - np.maximum(start, truths[:, 0])
    together = (end - start) + (truths[:, 1] - truths[:, 0]) - common
    return np.clip(common, 0, None) / together


def average_precision(predicted: Sequence[Moment], truths: Sequence[Moment], *, min_overlap: float) -> float:
    """Of one class: from the surest moment on, each finds the truth of its video that it overlaps most, of those from
    ``min_overlap`` on that no surer one has found; else it is false.

    Args:
        truths: at least one.
    """
    left: dict[str, list[Moment]] = defaultdict(list)
    for truth in truths:
        left[truth.uri].append(truth)
    found = np.zeros(len(predicted), dtype=bool)
    for number, moment in enumerate(sorted(predicted, key=lambda moment: -moment.score)):
        candidates = left[moment.uri]
        if not candidates:
            continue
        bounds = np.array([(truth.start_seconds, truth.end_seconds) for truth in candidates])
        overlaps = overlap(moment.start_seconds, moment.end_seconds, bounds)
        best = int(overlaps.argmax())
        if overlaps[best] >= min_overlap:
            found[number] = True
            del candidates[best]
    num_found = found.cumsum()
    precision = num_found / np.arange(1, len(found) + 1)
    best_precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_precision[found].sum() / len(truths))


def mean_average_precision(predicted: Sequence[Moment], truths: Sequence[Moment]) -> dict[str, dict[str, float]]:
    """For each class of the truths, and ``mean`` over them: average precision at each of OVERLAPS, and their mean."""
    by_class: dict[str, dict[str, float]] = {}
    for label in sorted({truth.label for truth in truths}):
        of_class = [[moment for moment in moments if moment.label == label] for moments in (predicted, truths)]
        values = {f"{at:g}": average_precision(*of_class, min_overlap=at) for at in OVERLAPS}
        by_class[label] = values | {"mean": sum(values.values()) / len(values)}
    names = [*(f"{at:g}" for at in OVERLAPS), "mean"]
    return {"mean": {name: float(np.mean([values[name] for values in by_class.values()])) for name in names}} | by_class
