"""RandAugment as in VideoMAE's recipe, timm's ``rand-m7-n4-mstd0.5-inc1``, for clips.

Operations that adapt to a picture (equalize, ...) adapt to the whole clip, so that brightness does not flicker.
``torchvision.transforms.v2`` does the pixels; the draws come from the caller's generator. ``v2.RandAugment`` itself
draws from torch's global generator, which clips in other threads and the training in this process draw from as well: no
clip would follow from its seed. It also adapts frame by frame, and its magnitudes are not timm's.

This is the only module of the decoding workers that needs torch, and only a clip that is augmented so loads it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

NUM_OPERATIONS = 4
"""Operations drawn per clip."""
PROBABILITY = 0.5
"""With which each of them is really done."""
MAX_MAGNITUDE = 10
_MAGNITUDE_STD = 0.5

Operation = Callable[[torch.Tensor, float, "list[float]"], torch.Tensor]
"""(clip TCHW uint8, level -1 to 1, fill colour) -> clip TCHW uint8. Where the sign means nothing it is ignored."""


def _as_one_picture(change: Callable[[torch.Tensor], torch.Tensor], clip_TCHW: torch.Tensor) -> torch.Tensor:
    """Changes colours with all frames below each other in one picture: what adapts, adapts to the clip."""
    num_frames, channels, height, width = clip_TCHW.shape
    picture_CHW = clip_TCHW.transpose(0, 1).reshape(channels, num_frames * height, width)
    return change(picture_CHW).reshape(channels, num_frames, height, width).transpose(0, 1)


def _affine(
    clip_TCHW: torch.Tensor,
    fill: list[float],
    *,
    angle: float = 0.0,
    move: tuple[float, float] = (0, 0),
    shear: tuple[float, float] = (0, 0),
) -> torch.Tensor:
    """``angle`` in degrees; ``move`` as shares of width and height; ``shear`` as slopes."""
    height, width = clip_TCHW.shape[-2:]
    return functional.affine(
        clip_TCHW,
        angle=angle,
        translate=[round(move[0] * width), round(move[1] * height)],
        scale=1.0,
        shear=[math.degrees(math.atan(slope)) for slope in shear],
        interpolation=InterpolationMode.BILINEAR,
        fill=fill,
    )


def _solarize(clip: torch.Tensor, level: float, fill: list[float]) -> torch.Tensor:
    return functional.solarize(clip, threshold=min(256 - int(256 * abs(level)), 255))


def _solarize_add(clip: torch.Tensor, level: float, fill: list[float]) -> torch.Tensor:
    return torch.where(clip < 128, clip + int(110 * abs(level)), clip)  # at most 127 + 110: no overflow


def _contrast(clip: torch.Tensor, level: float, fill: list[float]) -> torch.Tensor:
    return _as_one_picture(lambda picture: functional.adjust_contrast(picture, 1 + 0.9 * level), clip)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda clip, level, fill: _as_one_picture(functional.autocontrast, clip),
    "equalize": lambda clip, level, fill: _as_one_picture(functional.equalize, clip),
    "invert": lambda clip, level, fill: functional.invert(clip),
    "rotate": lambda clip, level, fill: _affine(clip, fill, angle=30 * level),
    "posterize": lambda clip, level, fill: functional.posterize(clip, bits=4 - int(4 * abs(level))),
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": lambda clip, level, fill: functional.adjust_saturation(clip, 1 + 0.9 * level),
    "contrast": _contrast,
    "brightness": lambda clip, level, fill: functional.adjust_brightness(clip, 1 + 0.9 * level),
    "sharpness": lambda clip, level, fill: functional.adjust_sharpness(clip, 1 + 0.9 * level),
    "shear_x": lambda clip, level, fill: _affine(clip, fill, shear=(0.3 * level, 0.0)),
    "shear_y": lambda clip, level, fill: _affine(clip, fill, shear=(0.0, 0.3 * level)),
    "translate_x": lambda clip, level, fill: _affine(clip, fill, move=(0.45 * level, 0.0)),
    "translate_y": lambda clip, level, fill: _affine(clip, fill, move=(0.0, 0.45 * level)),
}
"""The fifteen of timm's "increasing" RandAugment, which VideoMAE trains with: a larger ``level`` does more."""


def rand_augment(
    frames_THWC: np.ndarray, *, magnitude: int, fill: tuple[float, float, float], rng: random.Random
) -> np.ndarray:
    """The clip after up to four operations, uint8 (T, H, W, C).

    Args:
        magnitude: 0 to 10.
        fill: colour of what a rotation uncovers, 0 to 255.
    """
    clip_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    for _ in range(NUM_OPERATIONS):
        operation = OPERATIONS[rng.choice(tuple(OPERATIONS))]
        is_done = rng.random() < PROBABILITY
        strength = min(max(rng.gauss(magnitude, _MAGNITUDE_STD), 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
        sign = rng.choice((-1.0, 1.0))
        if is_done:
            clip_TCHW = operation(clip_TCHW, sign * strength, list(fill))
    return clip_TCHW.permute(0, 2, 3, 1).contiguous().numpy()
