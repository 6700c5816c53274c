"""What the training loop is given."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from vidray.models.families import Family
from vidray.training.config import TrainConfig
from vidray.training.data.bad_videos import BadVideo
from vidray.training.data.batch import Batch
from vidray.types import ViewConfig


class BatchSource(Protocol):
    """Where batches come from, see ``vidray.training.data.clip_source``."""

    num_samples: int
    """Clips per epoch, of all ranks together."""
    bad_videos: dict[int, BadVideo]
    """By row of the training table; those known to be bad need not be tried again."""

    def batches(self, epoch: int, start_sample: int) -> Generator[Batch, None, None]:
        """This rank's batches of an epoch, from a global batch on."""

    def prefetch(self, epoch: int) -> None:
        """Begin with the first clips of an epoch."""

    def close(self) -> None:
        """End whatever makes the clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTask:
    """What is trained on what."""

    config: TrainConfig
    model: nn.Module
    """On the rank's device, frozen and with drop path as wanted."""
    family: Family
    view: ViewConfig
    clips: BatchSource
    labels: np.ndarray
    """(num_videos,) label ids of the training videos: for class weights."""
    num_labels: int
