"""Augments the pixels of one training clip: RandAugment, mirroring, random erasing. The crop is cut before
(`vidray.video.random_crops`).

One draw holds for all frames of a clip, or motion would flicker. Everything random comes from the clip's seed, so that
a clip is the same on any worker and in any thread.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from vidray.training.config import TrainConfig
from vidray.types import ViewConfig
from vidray.video.random_crops import CropConfig

_MAX_MAGNITUDE = 10
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)
_ERASE_TRIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What may happen to the pixels of a clip."""

    flip: bool
    """Every other clip is mirrored, left to right."""
    randaugment: int
    """Magnitude of RandAugment, 0 to 10; 0: none."""
    erasing: float
    """Probability that a box is replaced by noise."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """The model's mean colour, in [0, 1]: fills what a rotation uncovers, and is the mean of the noise."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the noise."""

    def __post_init__(self) -> None:
        if not 0 <= self.randaugment <= _MAX_MAGNITUDE:
            raise ValueError(f"randaugment must be 0 to {_MAX_MAGNITUDE}, got {self.randaugment}")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing must be 0 to 1, got {self.erasing}")


def augment_config(config: TrainConfig, view: ViewConfig) -> AugmentConfig:
    """What a run asks for."""
    hyper = config.hyper
    return AugmentConfig(
        flip=config.flip, randaugment=hyper.randaugment, erasing=hyper.erasing, mean=view.mean, std=view.std
    )


def crop_config(config: TrainConfig, view: ViewConfig) -> CropConfig:
    """How a run's crops are drawn. A box of random area is cut from the largest picture, for the sake of detail."""
    low, high = (round(scale * view.size) for scale in (config.min_scale, config.max_scale))
    if config.hyper.resized_crop:
        return CropConfig(mode="resized", min_short_side=high, max_short_side=high, squeeze=view.squeeze)
    return CropConfig(mode="random", min_short_side=low, max_short_side=high, squeeze=view.squeeze)


def augment(frames_THWC: np.ndarray, config: AugmentConfig, *, seed: int) -> np.ndarray:
    """The clip after augmentation, uint8 (T, H, W, C); perhaps the array that was given.

    Args:
        seed: of the clip; decides everything.
    """
    rng = random.Random(f"{seed}/augment")
    frames = frames_THWC
    if config.randaugment:
        from vidray.training.data.rand_augment import rand_augment  # torch: 2 s and 400 MB in every decoding worker

        red, green, blue = (255 * value for value in config.mean)
        frames = rand_augment(frames, magnitude=config.randaugment, fill=(red, green, blue), rng=rng)
    if config.flip and rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    if rng.random() < config.erasing:
        frames = _erase(frames, config, rng, seed)
    return np.ascontiguousarray(frames)


def _erase(frames: np.ndarray, config: AugmentConfig, rng: random.Random, seed: int) -> np.ndarray:
    """One box, in all frames, becomes noise with the model's mean and standard deviation: the same in every frame."""
    # Not v2.RandomErasing: it needs torch, and draws from torch's global generator (see rand_augment).
    height, width = frames.shape[1:3]
    box = _erased_box(height, width, rng)
    if box is None:
        return frames
    top, left, box_height, box_width = box
    noise = np.random.default_rng(seed).standard_normal((box_height, box_width, 3), dtype=np.float32)
    pixels = 255 * (np.array(config.mean, np.float32) + np.array(config.std, np.float32) * noise)
    erased = frames.copy()
    erased[:, top : top + box_height, left : left + box_width] = np.clip(np.rint(pixels), 0, 255)
    return erased


def _erased_box(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int] | None:
    """(top, left, height, width); None if no draw fits."""
    low, high = map(math.log, _ERASED_ASPECT)
    for _ in range(_ERASE_TRIES):
        area = height * width * rng.uniform(*_ERASED_AREA)
        aspect = math.exp(rng.uniform(low, high))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= box_height <= height and 1 <= box_width <= width:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    return None
