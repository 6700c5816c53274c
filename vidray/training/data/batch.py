"""What training data hands to the training loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch, with the same number of slots on every rank and in every step."""

    pixels: torch.Tensor
    """(B, T, H, W, C) uint8 RGB."""
    labels: torch.Tensor
    """(B,) int64: of the pixels."""
    weights: torch.Tensor
    """(B,) float32: 1, or 0 where the slot's video is bad or there is none. Such a slot shows another good clip of this
    batch, with its label, so that neither batch norm nor mixup meets anything strange; zeros if no clip is good."""
    rows: torch.Tensor
    """(B,) int64: the slot's row in the training table; -1 where there is none."""
