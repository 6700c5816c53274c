"""Geometry of views: how a picture is turned, resized and cropped. Numpy only; nothing here knows a codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """How a stored picture must be turned to be displayed: transposed first, then mirrored."""

    transpose: bool = False
    """Rows become columns: width and height change places."""
    flip_columns: bool = False
    flip_rows: bool = False

    @classmethod
    def from_display_matrix(cls, matrix: Any) -> Orientation:
        """The right-angled turn nearest to a display matrix (ISO 14496-12: nine int32, ``x' = ax + cy``,
        ``y' = bx + dy``, y pointing down), given as their bytes."""
        a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, dtype=np.int32)[:5])
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transpose=True, flip_columns=c < 0, flip_rows=b < 0)
        return cls(flip_columns=a < 0, flip_rows=d < 0)

    def apply(self, image_HWC: np.ndarray) -> np.ndarray:
        """The picture as displayed: a view, nothing is copied."""
        if self.transpose:
            image_HWC = image_HWC.swapaxes(0, 1)
        return image_HWC[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after turning; also the size before turning that gives this one after it."""
        return (width, height) if self.transpose else (height, width)


UPRIGHT = Orientation()


def resized_size(height: int, width: int, *, short_side: int, squeeze: bool = False) -> tuple[int, int]:
    """(height, width) with the shorter side ``short_side`` and the longer one in proportion, rounded down; with
    ``squeeze`` both ``short_side``.

    The rounding is that of ``torchvision.transforms.Resize`` and of Transformers' image processors.
    """
    if min(height, width) < 1 or short_side < 1:
        raise ValueError(f"sizes must be at least 1, got {height} x {width} to short side {short_side}")
    if squeeze:
        return short_side, short_side
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


def crop_offsets(height: int, width: int, *, size: int, num_crops: int) -> list[tuple[int, int]]:
    """(top, left) of each square crop of side ``size``.

    1: the centre. 3: start, centre and end of the longer side (left to right, or top to bottom where the picture is
    higher than wide), centred along the other. The centre is torchvision's ``center_crop``: half the excess, rounded
    to the nearest integer, .5 to the even one. (PyTorchVideo's ``uniform_crop`` rounds .5 up, else it is the same.)
    """
    if min(height, width) < size:
        raise ValueError(f"cannot cut a square of {size} out of {height} x {width}")
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    if num_crops == 1:
        return [(top, left)]
    if height > width:
        return [(0, left), (top, left), (height - size, left)]
    return [(top, 0), (top, left), (top, width - size)]
