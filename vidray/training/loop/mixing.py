"""Targets and losses: label smoothing, mixup and CutMix on a batch, class weights.

The loss is computed from logits, here. A Transformers head that is given soft labels takes them for several labels at
once, uses another loss, and saves ``problem_type: multi_label_classification``.
"""

from __future__ import annotations

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from vidray.training.config import Hyperparameters


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
    pixels_NTCHW: torch.Tensor, targets_NC: torch.Tensor, *, hyper: Hyperparameters
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019) of each clip with its neighbour in the batch.

    With both asked for, one of them by lot; a box is the same in all frames. Nothing happens with neither. Draws from
    torch's global generator.
    """
    mixers: list[v2.Transform] = []
    if hyper.mixup > 0:
        mixers.append(v2.MixUp(alpha=hyper.mixup))
    if hyper.cutmix > 0:
        mixers.append(v2.CutMix(alpha=hyper.cutmix))
    if not mixers or len(pixels_NTCHW) < 2:
        return pixels_NTCHW, targets_NC
    pixels, targets = v2.RandomChoice(mixers)(tv_tensors.Video(pixels_NTCHW), targets_NC)
    return pixels.as_subclass(torch.Tensor), targets
