"""Targets and losses: label smoothing, mixup and CutMix on a batch, class weights.

The loss is computed from logits, here. A Transformers head that is given soft labels takes them for several labels at
once, uses another loss, and saves ``problem_type: multi_label_classification``.
"""

from __future__ import annotations

import numpy as np
import torch

from vidray.training.config import Hyper


def soft_targets(labels: torch.Tensor, *, num_labels: int, smoothing: float) -> torch.Tensor:
    """(N,) int64 to (N, num_labels) float32: ``1 - smoothing`` for the label, and ``smoothing`` spread over all."""
    targets = torch.full((len(labels), num_labels), smoothing / num_labels, device=labels.device)
    return targets.scatter_add_(1, labels[:, None], torch.full_like(targets[:, :1], 1 - smoothing))


def cross_entropy(
    logits_NC: torch.Tensor, targets_NC: torch.Tensor, *, class_weights_C: torch.Tensor | None = None
) -> torch.Tensor:
    """(N,) losses of soft targets; each class's share times its weight."""
    log_probs = torch.log_softmax(logits_NC.float(), dim=-1)
    weighted = targets_NC if class_weights_C is None else targets_NC * class_weights_C
    return -(weighted * log_probs).sum(dim=-1)


def inverse_frequency(labels: np.ndarray, *, num_labels: int) -> np.ndarray:
    """(num_labels,) float32 class weights: the rarer the heavier, with a mean of 1 over the samples."""
    counts = np.bincount(labels, minlength=num_labels)
    return (len(labels) / (num_labels * np.maximum(counts, 1))).astype(np.float32)


def mix(
    pixels_NTCHW: torch.Tensor, targets_NC: torch.Tensor, *, hyper: Hyper, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019) of each clip with its mirror in the batch.

    With both asked for, one of them by lot; a box is the same in all frames. Nothing happens with neither.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(hyper, kind) > 0]
    if not kinds or len(pixels_NTCHW) < 2:
        return pixels_NTCHW, targets_NC
    kind = kinds[int(rng.integers(len(kinds)))]
    alpha = getattr(hyper, kind)
    share = float(rng.beta(alpha, alpha))
    others = pixels_NTCHW.flip(0)
    if kind == "mixup":
        pixels = pixels_NTCHW * share + others * (1 - share)
    else:
        top, bottom, left, right = _box(tuple(pixels_NTCHW.shape[-2:]), 1 - share, rng)
        pixels = pixels_NTCHW.clone()
        pixels[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (pixels.shape[-2] * pixels.shape[-1])
    return pixels, targets_NC * share + targets_NC.flip(0) * (1 - share)


def _box(size: tuple[int, ...], area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of about this share of the frame, around any pixel, cut at the edges."""
    edges: list[int] = []
    for length in size:
        side, centre = length * area**0.5, int(rng.integers(length))
        edges += [max(0, int(centre - side / 2)), min(length, int(centre + side / 2))]
    return edges[0], edges[1], edges[2], edges[3]
