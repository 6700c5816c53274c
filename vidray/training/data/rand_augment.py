"""RandAugment as in VideoMAE's recipe, timm's ``rand-m7-n4-mstd0.5-inc1``, for clips.

Operations that adapt to a picture (equalize, ...) adapt to the whole clip, so that brightness does not flicker. The
draws come from the caller's generator, never from torch's global one. ``torchvision.transforms.v2`` does the pixels;
this is the only module of the decoding workers that needs torch, and only a clip that is augmented so loads it.
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

Operation = Callable[[torch.Tensor, float, float, "list[float]"], torch.Tensor]
"""(clip THWC uint8, strength 0 to 1, sign ±1, fill colour) -> clip THWC uint8."""


def _on_one_picture(change: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """Changes colours with all frames below each other in one picture: what adapts, adapts to the clip."""
    num_frames, height, width, channels = frames.shape
    picture_CHW = frames.reshape(num_frames * height, width, channels).permute(2, 0, 1)
    return change(picture_CHW).permute(1, 2, 0).reshape(num_frames, height, width, channels)


def _on_each_frame(change: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    return change(frames.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _affine(
    frames: torch.Tensor,
    fill: list[float],
    *,
    angle: float = 0.0,
    move: tuple[float, float] = (0, 0),
    shear: tuple[float, float] = (0, 0),
) -> torch.Tensor:
    def change(frames_TCHW: torch.Tensor) -> torch.Tensor:
        return functional.affine(
            frames_TCHW,
            angle=angle,
            translate=[round(move[0] * frames_TCHW.shape[-1]), round(move[1] * frames_TCHW.shape[-2])],
            scale=1.0,
            shear=[math.degrees(math.atan(s)) for s in shear],
            interpolation=InterpolationMode.BILINEAR,
            fill=fill,
        )

    return _on_each_frame(change, frames)


def _auto_contrast(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_one_picture(functional.autocontrast, frames)


def _equalize(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_one_picture(functional.equalize, frames)


def _invert(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return 255 - frames


def _rotate(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _affine(frames, fill, angle=sign * 30.0 * strength)


def _posterize(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_one_picture(lambda picture: functional.posterize(picture, bits=4 - int(4 * strength)), frames)


def _solarize(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_one_picture(
        lambda picture: functional.solarize(picture, threshold=min(256 - int(256 * strength), 255)), frames
    )


def _solarize_add(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    added = int(110 * strength)
    return torch.where(frames < 128, frames + added, frames)  # at most 127 + 110: no overflow


def _color(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_one_picture(lambda picture: functional.adjust_saturation(picture, 1 + sign * 0.9 * strength), frames)


def _contrast(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_one_picture(lambda picture: functional.adjust_contrast(picture, 1 + sign * 0.9 * strength), frames)


def _brightness(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_one_picture(lambda picture: functional.adjust_brightness(picture, 1 + sign * 0.9 * strength), frames)


def _sharpness(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _on_each_frame(lambda clip: functional.adjust_sharpness(clip, 1 + sign * 0.9 * strength), frames)


def _shear_x(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _affine(frames, fill, shear=(sign * 0.3 * strength, 0.0))


def _shear_y(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _affine(frames, fill, shear=(0.0, sign * 0.3 * strength))


def _translate_x(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _affine(frames, fill, move=(sign * 0.45 * strength, 0.0))


def _translate_y(frames: torch.Tensor, strength: float, sign: float, fill: list[float]) -> torch.Tensor:
    return _affine(frames, fill, move=(0.0, sign * 0.45 * strength))


OPERATIONS: tuple[Operation, ...] = (
    _auto_contrast,
    _equalize,
    _invert,
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _color,
    _contrast,
    _brightness,
    _sharpness,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
"""The fifteen of timm's "increasing" RandAugment, which VideoMAE trains with; each gets stronger with ``strength``."""


def rand_augment(
    frames_THWC: np.ndarray, *, magnitude: int, fill: tuple[float, float, float], rng: random.Random
) -> np.ndarray:
    """The clip after up to four operations, uint8 (T, H, W, C).

    Args:
        magnitude: 0 to 10.
        fill: colour of what a rotation uncovers, 0 to 255.
    """
    frames = torch.from_numpy(frames_THWC)
    for _ in range(NUM_OPERATIONS):
        operation = rng.choice(OPERATIONS)
        is_done = rng.random() < PROBABILITY
        strength = min(max(rng.gauss(magnitude, _MAGNITUDE_STD), 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
        sign = rng.choice((-1.0, 1.0))
        if is_done:
            frames = operation(frames, strength, sign, list(fill))
    return frames.contiguous().numpy()
