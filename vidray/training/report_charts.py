"""The charts of a training's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vidray.pages.blocks import Heat, Picture, Pictures
from vidray.pages.charts import chart, colour
from vidray.pages.strips import shade
from vidray.pages.words import count, percent

MAX_NAMED_CLASSES = 24
"""Above this many classes the confusion matrix is an image without names; the table of confusions has these."""
_SAME = 0.005
"""Two curves that are nowhere further apart are one to the eye."""


def learning_curves(rows: Sequence[dict[str, Any]], *, best_epoch: int | None) -> Pictures | None:
    """Loss and accuracy over the epochs; None if nothing was trained."""
    trained = [row for row in rows if row["kind"] == "train"]
    validated = [row for row in rows if row["kind"] == "validation"]
    if not trained and not validated:
        return None
    steps_per_epoch = validated[0]["step"] / (validated[0]["epoch"] + 1) if validated else None
    scale = steps_per_epoch or 1.0
    unit = "epoch" if steps_per_epoch else "step"
    best = next((row for row in validated if row["epoch"] + 1 == best_epoch), None)

    def draw_loss(axes: Any) -> None:
        _line(axes, trained, "loss", scale, name="training loss", colour_name="other", width=1.2)
        _line(axes, validated, "nll", scale, name="validation loss", colour_name="accent", marker=".")
        _finish(axes, unit, "loss", best, scale)
        axes.set_ylim(bottom=0)

    pictures = [Picture(title="Loss", alt=_loss_words(trained, validated), svg=chart(draw_loss))]
    if validated:
        pictures.append(_accuracy(validated, best, scale, unit))
    return Pictures(pictures=pictures)


def _accuracy(validated: list[dict[str, Any]], best: dict[str, Any] | None, scale: float, unit: str) -> Picture:
    is_same = all(abs(row["accuracy"] - row["mean_class_accuracy"]) <= _SAME for row in validated)

    def draw(axes: Any) -> None:
        _line(axes, validated, "accuracy", scale, name="accuracy", colour_name="accent", marker=".")
        if not is_same:
            name = "mean_class_accuracy"
            _line(axes, validated, name, scale, name="mean class accuracy", colour_name="other", style="--", width=1.3)
        _finish(axes, unit, "of the validation videos", best, scale)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")

    words = f"Accuracy goes from {percent(validated[0]['accuracy'])} to {percent(validated[-1]['accuracy'])}"
    words += f"; the best epoch, {best['epoch'] + 1}, has {percent(best['accuracy'])}." if best else "."
    note = "The mean class accuracy is the same: classes have about equally many videos." if is_same else ""
    return Picture(title="Validation accuracy", alt=words, svg=chart(draw), note=note)


def _line(
    axes: Any,
    rows: Sequence[dict[str, Any]],
    key: str,
    scale: float,
    *,
    name: str,
    colour_name: str,
    style: str = "-",
    width: float = 1.8,
    marker: str | None = None,
) -> None:
    points = [(row["step"] / scale, row[key]) for row in rows if key in row]
    if points:
        axes.plot(
            *zip(*points, strict=True), style, color=colour(colour_name), label=name, linewidth=width, marker=marker
        )


def _finish(axes: Any, unit: str, name: str, best: dict[str, Any] | None, scale: float) -> None:
    if best is not None:
        axes.axvline(best["step"] / scale, color=colour("ink"), linewidth=1, linestyle=":", label="best epoch")
    axes.set_xlabel(unit)
    axes.set_ylabel(name)
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")


def _loss_words(trained: Sequence[dict[str, Any]], validated: Sequence[dict[str, Any]]) -> str:
    told = []
    if trained:
        told.append(f"training loss goes from {trained[0]['loss']:.3g} to {trained[-1]['loss']:.3g}")
    if validated:
        told.append(f"validation loss from {validated[0]['nll']:.3g} to {validated[-1]['nll']:.3g}")
    return f"Line chart: {', '.join(told)}."


def confusion(pairs: Sequence[Sequence[int]], labels: Sequence[str]) -> Heat | Pictures:
    """The confusion matrix, each row by its number of videos: a table, or for many classes an image.

    Args:
        pairs: [actual, predicted, count].
    """
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for actual, predicted, number in pairs:
        counts[actual, predicted] = number
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(labels) <= MAX_NAMED_CLASSES:
        return Heat(
            caption="Confusion matrix, in percent of each actual class",
            rows_are="actual",
            columns_are="predicted",
            names=labels,
            shares=shares.tolist(),
            counts=counts.tolist(),
        )
    right = np.trace(counts) / max(counts.sum(), 1)
    note = f"{len(labels)} classes in the order of the model's labels. Weak tones are raised: a tenth shows as a third."
    picture = Picture(
        title="Confusion matrix",
        alt=f"Matrix of {len(labels)} by {len(labels)} classes; {percent(right)} of the videos lie on its diagonal. "
        "The table below names the most frequent confusions.",
        src=shade(np.sqrt(shares)),
        note=note,
        rows_are="actual",
        columns_are="predicted",
    )
    return Pictures(pictures=[picture])


def certainty(facts: dict[str, Any]) -> Pictures:
    """The reliability diagram, and the probability of the actual class."""
    bins, histogram = facts["reliability"], facts["actual_class"]

    def draw_reliability(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], ":", color=colour("soft"), linewidth=1, label="perfect")
        sizes = np.array([one["num_videos"] for one in bins])
        x, y = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
        axes.plot(x, y, color=colour("accent"), linewidth=1.2)
        axes.scatter(x, y, s=12 + 150 * sizes / sizes.max(), color=colour("accent"), alpha=0.75, label="videos")
        axes.set(xlim=(0, 1.03), ylim=(0, 1.05), xlabel="score of the predicted class", ylabel="share that is right")
        axes.legend(loc="best", markerscale=0.5)

    def draw_histogram(axes: Any) -> None:
        edges = np.linspace(0, 1, len(histogram["correct"]) + 1)
        width = edges[1] * 0.9
        correct, wrong = np.array(histogram["correct"]), np.array(histogram["wrong"])
        axes.bar(edges[:-1], correct, width, align="edge", color=colour("accent"), label="predicted right")
        axes.bar(edges[:-1], wrong, width, align="edge", bottom=correct, color=colour("other"), label="wrong")
        axes.set(xlim=(0, 1), xlabel="probability of the actual class", ylabel="videos")
        axes.legend(loc="upper center")

    told = "; ".join(f"score {one['confidence']:.2f}: {percent(one['accuracy'])} right" for one in bins)
    num_low = sum(np.add(histogram["correct"], histogram["wrong"])[: len(histogram["wrong"]) // 2].tolist())
    return Pictures(
        pictures=[
            Picture(
                title="Reliability",
                alt=f"Share of right predictions by score. {told}.",
                svg=chart(draw_reliability),
                note="Below the dotted line the model is too sure of itself. Larger dots are more videos.",
            ),
            Picture(
                title="Probability of the actual class",
                alt=f"Histogram: {count(num_low, 'video')} give their actual class less than 0.5.",
                svg=chart(draw_histogram),
            ),
        ]
    )
