"""Which part of a picture a training clip shows. Pure arithmetic, the same for one seed on every machine.

The crop is cut before anything else is done to the pixels, in the process that decodes: a clip then costs what a view
costs, whatever the video's size.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, Literal

from vidray.video.geometry import resized_size

CropMode = Literal["random", "resized"]

_MAX_TRIES = 10
"""Draws of a box that fits, as in torchvision's ``RandomResizedCrop``; then the largest box in the centre."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """How the crop of a training clip is drawn; one draw for all frames of the clip."""

    mode: CropMode
    """``random``: a square of the model's size anywhere, after the short side is resized to a random length.
    ``resized``: a box of random area and aspect anywhere, resized to the model's size."""
    min_short_side: int
    """The short side is resized to a length from this one ..."""
    max_short_side: int
    """... to this one, both included."""
    min_area: float = 0.08
    """With ``resized``: the least share of the picture that the box covers; the greatest is 1."""
    max_aspect: float = 4 / 3
    """With ``resized``: greatest ratio of the box's width to its height; the least is its inverse."""
    squeeze: bool = False
    """Both sides are resized to the drawn length, as in the view (``ViewConfig.squeeze``)."""

    def __post_init__(self) -> None:
        if self.mode not in ("random", "resized"):
            raise ValueError(f"mode must be 'random' or 'resized', got {self.mode!r}")
        if not 1 <= self.min_short_side <= self.max_short_side:
            raise ValueError(f"short sides must be 1 <= min <= max, got {self.min_short_side}, {self.max_short_side}")
        if not 0 < self.min_area <= 1 or not 1 <= self.max_aspect < math.inf:
            raise ValueError(f"need 0 < min_area <= 1 <= max_aspect, got {self.min_area}, {self.max_aspect}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CropConfig:
        """The config that ``dataclasses.asdict`` gave."""
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipDraw:
    """What makes a training clip of a video: how, and the seed that decides all that is random."""

    crop: CropConfig
    seed: int
    """0 to 2^64 - 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnBox:
    """A box in a resized picture."""

    picture: tuple[int, int]
    """(height, width) to which the whole picture is resized."""
    top: int
    left: int
    height: int
    width: int


def draw_box(height: int, width: int, *, size: int, draw: ClipDraw) -> DrawnBox:
    """The part of a ``height`` × ``width`` picture that a clip for a ``size`` × ``size`` model shows.

    Raises:
        ValueError: with ``random``, the short side would be smaller than ``size``.
    """
    rng = random.Random(f"{draw.seed}/crop")
    short_side = rng.randint(draw.crop.min_short_side, draw.crop.max_short_side)
    picture = resized_size(height, width, short_side=short_side, squeeze=draw.crop.squeeze)
    if draw.crop.mode == "random" and short_side < size:
        raise ValueError(f"cannot cut a square of {size} out of a picture with a short side of {short_side}")
    box = (size, size) if draw.crop.mode == "random" else _draw_shape(*picture, draw.crop, rng)
    top, left = (math.floor(rng.random() * (have - need + 1)) for have, need in zip(picture, box, strict=True))
    return DrawnBox(picture=picture, top=top, left=left, height=box[0], width=box[1])


def _draw_shape(height: int, width: int, crop: CropConfig, rng: random.Random) -> tuple[int, int]:
    """(height, width) of a box of random area and aspect that fits."""
    log_aspect = math.log(crop.max_aspect)
    for _ in range(_MAX_TRIES):
        area = height * width * rng.uniform(crop.min_area, 1.0)
        aspect = math.exp(rng.uniform(-log_aspect, log_aspect))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 1 <= box_height <= height and 1 <= box_width <= width:
            return box_height, box_width
    return min(height, round(width * crop.max_aspect)), min(width, round(height * crop.max_aspect))
