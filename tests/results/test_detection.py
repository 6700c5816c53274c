"""Average precision of moments, against an example worked out by hand and another implementation."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from vidray.results.detection import OVERLAPS, average_precision, mean_average_precision, overlap
from vidray.results.moments import Moment


def moment(uri: str, start: float, end: float, *, score: float = 1.0, label: str = "run") -> Moment:
    return Moment(uri=uri, start_seconds=start, end_seconds=end, label=label, score=score, mean_score=score)


def test_overlap_is_intersection_by_union() -> None:
    truths = np.array([[0.0, 10.0], [5.0, 15.0], [12.0, 13.0], [2.0, 4.0]])
    assert overlap(0, 10, truths) == pytest.approx([1, 5 / 15, 0, 2 / 10])


TRUTHS = [moment("a", 0, 10), moment("a", 20, 30), moment("b", 0, 10)]
PREDICTED = [
    moment("a", 0, 8, score=0.9),  # 0.8 of the first
    moment("a", 1, 10, score=0.8),  # 0.9 of the first, which is taken: false
    moment("b", 5, 10, score=0.7),  # 0.5 of the third
    moment("c", 0, 10, score=0.6),  # a video without any: false
    moment("a", 20, 26, score=0.5),  # 0.6 of the second
]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        # found, false, found, false, found: precision 1, 2/3, 3/5 at the three recalls
        (0.5, (1 + Fraction(2, 3) + Fraction(3, 5)) / 3),
        # found, false, false, false, found: 1, 2/5
        (0.6, (1 + Fraction(2, 5)) / 3),
        # found alone
        (0.7, Fraction(1, 3)),
        # the first does not reach 0.85, so the second finds it: false, found, …: 1/2
        (0.85, Fraction(1, 6)),
    ],
)
def test_an_example_worked_out_by_hand(at: float, expected: Fraction) -> None:
    assert average_precision(PREDICTED, TRUTHS, min_overlap=at) == pytest.approx(float(expected))


def test_precision_is_interpolated() -> None:
    """False, found, found: the precision at the first recall is 2/3, of the second, not 1/2."""
    predicted = [moment("z", 0, 1, score=0.9), moment("a", 0, 10, score=0.8), moment("a", 20, 30, score=0.7)]
    assert average_precision(predicted, TRUTHS, min_overlap=0.5) == pytest.approx(2 / 3 * 2 / 3)


def test_nothing_found_is_zero_and_the_mean_is_over_the_classes_of_the_truths() -> None:
    truths = [*TRUTHS, moment("a", 0, 5, label="jump")]
    figures = mean_average_precision([*TRUTHS, moment("a", 0, 5, label="unheard of")], truths)
    assert figures.keys() == {"mean", "run", "jump"}
    assert figures["run"] == dict.fromkeys([*map(str, OVERLAPS), "mean"], 1.0)
    assert figures["jump"]["mean"] == 0
    assert figures["mean"]["0.5"] == 0.5


def plainly(predicted: list[Moment], truths: list[Moment], at: float) -> float:
    """As the definition reads: walk down the list, integrate the interpolated curve over recall, in exact fractions."""

    def iou(one: Moment, other: Moment) -> float:
        common = min(one.end_seconds, other.end_seconds) - max(one.start_seconds, other.start_seconds)
        whole = max(one.end_seconds, other.end_seconds) - min(one.start_seconds, other.start_seconds)
        return max(0.0, common) / whole if common > 0 else 0.0

    taken: set[int] = set()
    curve = []  # (recall, precision) after each
    for count, prediction in enumerate(sorted(predicted, key=lambda m: m.score, reverse=True), start=1):
        by_overlap = sorted(
            ((iou(prediction, truth), number) for number, truth in enumerate(truths) if truth.uri == prediction.uri),
            reverse=True,
        )
        for value, number in by_overlap:
            if value < at:
                break
            if number not in taken:
                taken.add(number)
                break
        curve.append((Fraction(len(taken), len(truths)), Fraction(len(taken), count)))
    area, last = Fraction(0), Fraction(0)
    for recall in sorted({recall for recall, _ in curve}):
        area += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return float(area)


@pytest.mark.parametrize("seed", range(40))
def test_another_implementation_finds_the_same(seed: int) -> None:
    draw = random.Random(seed)

    def some(number: int) -> list[Moment]:
        starts = [draw.uniform(0, 50) for _ in range(number)]
        return [moment(draw.choice("abc"), s, s + draw.uniform(1, 20), score=draw.random()) for s in starts]

    truths, predicted = some(draw.randint(1, 12)), some(draw.randint(0, 30))
    for at in (0.1, *OVERLAPS):
        assert average_precision(predicted, truths, min_overlap=at) == pytest.approx(plainly(predicted, truths, at))
