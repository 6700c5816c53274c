"""How good predictions are. Plain numpy over scores and labels; no model, no video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017)."""


def classification_metrics(scores_NC: np.ndarray, labels_N: np.ndarray, *, names: Sequence[str]) -> dict[str, Any]:
    """Figures of merit of probabilities, as plain values for JSON.

    Args:
        scores_NC: (N, C) probabilities.
        labels_N: (N,) numbers of the actual classes.
        names: the C classes' names.

    Returns:
        ``num_videos``, ``accuracy``, ``top5_accuracy`` (among the five best), ``mean_class_accuracy`` (mean of the
        recalls of the classes that occur), ``nll``, ``ece``, ``per_class`` and ``confusion`` (rows: actual,
        columns: predicted). Of equal scores the earlier class counts as the better one, as in scoring.

    Raises:
        ValueError: there are no rows, or the shapes do not fit.
    """
    if len(labels_N) == 0 or scores_NC.shape != (len(labels_N), len(names)):
        raise ValueError(f"scores must be (N, {len(names)}) with N labels above 0, got {scores_NC.shape}")
    confusion = confusion_matrix(scores_NC.argmax(axis=1), labels_N, num_labels=len(names))
    per_class = _per_class(confusion, names)
    recalls = [entry["recall"] for entry in per_class.values() if entry["num_videos"] > 0]
    return {
        "num_videos": len(labels_N),
        "accuracy": top_k_accuracy(scores_NC, labels_N, k=1),
        "top5_accuracy": top_k_accuracy(scores_NC, labels_N, k=5),
        "mean_class_accuracy": float(np.mean(recalls)),
        "nll": negative_log_likelihood(scores_NC, labels_N),
        "ece": calibration_error(scores_NC, labels_N),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def top_k_accuracy(scores_NC: np.ndarray, labels_N: np.ndarray, *, k: int) -> float:
    """Share of rows whose label is among the ``k`` best."""
    best = np.argsort(-scores_NC, axis=1, kind="stable")[:, :k]
    return float((best == labels_N[:, None]).any(axis=1).mean())


def negative_log_likelihood(scores_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean of ``-log(score of the label)``; a score of 0 counts as the smallest float32 above it."""
    chosen = scores_NC[np.arange(len(labels_N)), labels_N].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def calibration_error(scores_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Expected calibration error: how far confidence is from accuracy, over equal bins of confidence."""
    confidence, is_correct = scores_NC.max(axis=1).astype(np.float64), scores_NC.argmax(axis=1) == labels_N
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - is_correct, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels_N))


def confusion_matrix(predicted_N: np.ndarray, labels_N: np.ndarray, *, num_labels: int) -> np.ndarray:
    """(C, C) int64 counts; rows: the actual class, columns: the predicted one."""
    counts = np.bincount(labels_N * num_labels + predicted_N, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def _per_class(confusion: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1; 0 for a class that was never predicted or does not occur."""
    correct, predicted, actual = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    precision, recall = correct / np.maximum(predicted, 1), correct / np.maximum(actual, 1)
    f1 = 2 * correct / np.maximum(predicted + actual, 1)
    return {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "num_videos": int(actual[i]),
        }
        for i, name in enumerate(names)
    }
