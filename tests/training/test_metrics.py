"""The figures of merit agree with counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vidray.training.metrics import calibration_error, classification_metrics, confusion_matrix, top_k_accuracy

NAMES = ("a", "b", "c")
SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], np.float32)
LABELS = np.array([0, 1, 1, 2])


def test_all_figures_of_a_small_case_by_hand():
    found = classification_metrics(SCORES, LABELS, names=NAMES)
    assert found["num_videos"] == 4
    assert found["accuracy"] == 0.75
    assert found["top5_accuracy"] == 1
    assert found["mean_class_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.7, 0.8, 0.3, 0.6))) / 4, rel=1e-6)
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found["per_class"]["a"] == {
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "num_videos": 1,
    }
    assert found["per_class"]["b"]["precision"] == 1
    assert found["per_class"]["b"]["recall"] == 0.5


def test_a_class_that_does_not_occur_leaves_the_mean_alone():
    found = classification_metrics(SCORES[:2], LABELS[:2], names=NAMES)
    assert found["mean_class_accuracy"] == 1
    assert found["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "num_videos": 0}


def test_of_equal_scores_the_earlier_class_is_better():
    equal = np.full((2, 3), 1 / 3, np.float32)
    assert top_k_accuracy(equal, np.array([0, 1]), k=1) == 0.5
    assert top_k_accuracy(equal, np.array([0, 1]), k=2) == 1.0


@pytest.mark.parametrize(
    ("confidence", "num_right", "error"), [(0.9, 9, 0.0), (0.9, 5, 0.4), (0.6, 10, 0.4), (1.0, 10, 0)]
)
def test_calibration_error_is_the_gap_between_confidence_and_accuracy(confidence, num_right, error):
    scores = np.tile([confidence, 1 - confidence], (10, 1))
    labels = np.array([0] * num_right + [1] * (10 - num_right))
    assert calibration_error(scores, labels) == pytest.approx(error, abs=1e-9)


def test_the_confusion_matrix_counts_every_pair():
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 4, size=(2, 100))
    counts = confusion_matrix(predicted, labels, num_labels=4)
    for actual in range(4):
        for guess in range(4):
            assert counts[actual, guess] == ((labels == actual) & (predicted == guess)).sum()


def test_a_certain_mistake_is_expensive_but_finite():
    found = classification_metrics(np.array([[1.0, 0.0]]), np.array([1]), names=("a", "b"))
    assert 80 < found["nll"] < 100


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        classification_metrics(np.zeros((0, 2)), np.zeros(0, int), names=("a", "b"))
