"""Pictures of a run: learning curves, the confusion matrix, and frames of the worst mistakes."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.sources.rows import time_range_of, video_of
from vidray.storage.fetch import fetch
from vidray.training.evaluate import EvalResults, EvalSpec, video_scores

NUM_MISTAKES = 8
NUM_FRAMES = 8
MAX_NAMED_CLASSES = 60
"""Above this many classes the confusion matrix has no names along its sides."""


def draw_report(
    folder: Path,
    figures: dict[str, Any],
    results: EvalResults,
    spec: EvalSpec,
    *,
    metrics_rows: Sequence[dict[str, Any]] = (),
) -> bool:
    """Put all pictures into ``folder``. Returns False, and draws nothing, if matplotlib is not installed.

    Args:
        figures: of the evaluation.
        metrics_rows: lines of metrics.jsonl, for the learning curves; without them there are none.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    if metrics_rows:
        draw_curves(metrics_rows, folder / "curves.png")
    draw_confusion(figures["confusion"], spec.labels, folder / "confusion.png")
    draw_mistakes(worst_mistakes(results, spec), spec, folder / "mistakes.png")
    return True


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy over the steps."""
    figure, (left, right) = _figure(1, 2, size=(11, 4))
    train = [row for row in rows if row["kind"] == "train"]
    validated = [row for row in rows if row["kind"] == "validation"]
    left.plot([row["step"] for row in train], [row["loss"] for row in train], label="training loss")
    left.plot([row["step"] for row in validated], [row["nll"] for row in validated], "o-", label="validation NLL")
    for name in ("accuracy", "mean_class_accuracy", "top5_accuracy"):
        points = [(row["step"], row[name]) for row in validated if name in row]
        right.plot([x for x, _ in points], [y for _, y in points], "o-", label=name.replace("_", " "))
    right.set_ylim(0, 1.02)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def draw_confusion(counts: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Rows: the actual class; columns: the predicted one; colour: the share of the row."""
    matrix = np.asarray(counts, float)
    side = min(20, 3 + 0.35 * min(len(labels), MAX_NAMED_CLASSES))
    figure, axes = _figure(1, 1, size=(side + 1, side))
    axes.imshow(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    if len(labels) <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
    if len(labels) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=8)
    _save(figure, path)


def worst_mistakes(results: EvalResults, spec: EvalSpec) -> list[tuple[int, str, float]]:
    """(row of the table, predicted label, its score) of the surest mistakes, the surest first."""
    labels = spec.table["label_id"].to_pylist()
    wrong = []
    for row in sorted(results.logits):
        scores = video_scores(results.logits[row], spec)
        predicted = int(scores.argmax())
        if predicted != labels[row]:
            wrong.append((row, spec.labels[predicted], float(scores[predicted])))
    return sorted(wrong, key=lambda mistake: -mistake[2])[:NUM_MISTAKES]


def draw_mistakes(mistakes: Sequence[tuple[int, str, float]], spec: EvalSpec, path: Path) -> None:
    """One row of frames per mistake, as the model saw them. Draws nothing if there is none."""
    if not mistakes:
        return
    figure, grid = _figure(len(mistakes), 1, size=(NUM_FRAMES * 1.3, 1.7 * len(mistakes)))
    with Sandbox(view=spec.view, limits=spec.limits) as sandbox:
        for axes, (row, predicted, score) in zip(np.atleast_1d(grid), mistakes, strict=True):
            values = spec.table.slice(row, 1).to_pylist()[0]
            axes.set_title(
                f"{values['label']}, predicted {predicted} ({score:.2f}): {values['uri'][-70:]}", fontsize=7, loc="left"
            )
            axes.axis("off")
            axes.imshow(_strip(values, spec, sandbox))
    _save(figure, path)


def _strip(values: dict[str, Any], spec: EvalSpec, sandbox: Sandbox) -> np.ndarray:
    """(H, W × frames, 3) uint8: frames of the middle view side by side."""
    try:
        views_VTHWC, _ = sandbox.decode(fetch(video_of(values), limits=spec.limits), time_range=time_range_of(values))
    except VideoError:  # it was there a moment ago; a picture is no reason to lose a finished run
        return np.zeros((spec.view.size, spec.view.size * NUM_FRAMES, 3), np.uint8)
    clip = views_VTHWC[len(views_VTHWC) // 2]
    chosen = clip[np.linspace(0, len(clip) - 1, min(NUM_FRAMES, len(clip))).round().astype(int)]
    return np.concatenate(list(chosen), axis=1)


def _save(figure: Any, path: Path) -> None:
    """Labels may have letters that the font lacks: boxes are drawn for them, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path)


def _figure(rows: int, columns: int, *, size: tuple[float, float]) -> Any:
    """A figure that belongs to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)
