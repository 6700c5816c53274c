"""What the training loop is given, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from vidray.models.families import Family
from vidray.training.config import TrainConfig
from vidray.training.loop.state import State, Tensors
from vidray.types import ViewConfig

METRICS_FILE = "metrics.jsonl"


class Batch(Protocol):
    """This rank's part of a global batch."""

    @property
    def pixels(self) -> torch.Tensor: ...  # (B, T, H, W, C) uint8
    @property
    def labels(self) -> torch.Tensor: ...  # (B,) int64
    @property
    def weights(self) -> torch.Tensor: ...  # (B,) float32; 0: a bad video, or nothing


class Clips(Protocol):
    """Where batches come from, see ``vidray.training.data.clip_source``."""

    num_samples: int
    verdicts: dict[int, str]
    messages: dict[int, str]

    def batches(self, epoch: int, start_sample: int) -> Any: ...

    def prefetch(self, epoch: int) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is trained on what."""

    config: TrainConfig
    model: nn.Module
    """On the rank's device, frozen and with drop path as wanted."""
    family: Family
    view: ViewConfig
    clips: Clips
    labels: np.ndarray
    """(num_videos,) label ids of the training videos: for class weights."""
    num_labels: int


class Keeper(Protocol):
    """Takes what must outlive the process. Called by every rank; the first one writes."""

    def save(self, state: State) -> None: ...

    def save_best(self, step: int, weights: Tensors) -> None: ...


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where the run is; plain values, part of the state."""

    epoch: int = 0
    samples: int = 0
    """Samples of this epoch that are done, over all ranks."""
    step: int = 0
    best_step: int | None = None
    best_key: list[float] | None = None
    """Larger is better: the chosen metric, then minus the NLL."""
    best_epoch: int | None = None
    num_without_gain: int = 0
    is_over: bool = False
    verdicts: dict[str, str] = field(default_factory=dict)
    """Row of the training table → status, of videos that turned out bad."""
    messages: dict[str, str] = field(default_factory=dict)
    """Row → why."""
