"""From a decoded frame to the pixels that are kept: resized, turned as displayed, cropped, RGB.

Works on PyAV's frames and reformatters without importing PyAV (``decode`` alone does), hence their types ``Any``. A
reformatter is swscale's memory of one conversion, and must be reused for the next frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidray.transforms import UPRIGHT, Orientation, crop_offsets, resized_size

Picture = np.ndarray

VIA_422 = frozenset({"yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p", "yuva422p"})
"""Formats that PyAV's ``to_rgb`` converts with swscale's fast tables."""

MAX_ASPECT = 32
"""Pictures longer than this many times their short side are cropped before they are resized."""


def orientation_of(frame: Any) -> Orientation:
    """How a frame must be turned to be displayed."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else Orientation.from_display_matrix(memoryview(matrix))


class FullSize:
    """Converts frames to (H, W, 3) uint8 RGB as displayed, bit for bit as PyAV's ``to_rgb`` (and PyTorchVideo)."""

    def __init__(self, to_rgb: Any) -> None:
        self._to_rgb = to_rgb

    def __call__(self, frame: Any) -> Picture:
        rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1)
        return orientation_of(frame).apply(_pixels(rgb)).copy()


class Crops:
    """Converts frames to (num_crops, size, size, 3) uint8 RGB; docs/preprocessing.md gives the reasons.

    swscale resizes with its bilinear filter, which spans all source pixels under a target pixel (antialiased, as
    torchvision's ``antialias=True``). It does so in 4:2:2, or in planar RGB where the source is not 8-bit 4:2:0 or
    4:2:2, and then the small picture becomes RGB: nearer to torchvision than resizing and converting in one call, and
    three times as fast.
    """

    def __init__(self, *, short_side: int, size: int, num_crops: int, resize: Any, to_rgb: Any) -> None:
        self._short_side, self._size, self._num_crops = short_side, size, num_crops
        self._resize, self._to_rgb = resize, to_rgb

    def __call__(self, frame: Any) -> Picture:
        if max(frame.height, frame.width) > MAX_ASPECT * min(frame.height, frame.width):
            return self._crops_of_strip(frame)
        height, width = resized_size(frame.height, frame.width, short_side=self._short_side)
        # Resized before it is turned: turning is then a view of few pixels.
        image = orientation_of(frame).apply(self._resized(frame, height, width))
        offsets = crop_offsets(*image.shape[:2], size=self._size, num_crops=self._num_crops)
        crops = np.empty((self._num_crops, self._size, self._size, 3), np.uint8)
        for crop, (top, left) in zip(crops, offsets, strict=True):
            crop[:] = image[top : top + self._size, left : left + self._size]
        return crops

    def _resized(self, frame: Any, height: int, width: int) -> np.ndarray:
        middle = "yuv422p" if frame.format.name in VIA_422 else "gbrp"
        small = self._resize.reformat(
            frame, width=width, height=height, format=middle, interpolation="BILINEAR", threads=1
        )
        return _pixels(self._to_rgb.reformat(small, format="rgb24", threads=1))

    def _crops_of_strip(self, frame: Any) -> Picture:
        """The same for a very long picture, of which a whole resized copy could be huge: only what lies under the
        crops, and two pixels around them, is resized."""
        image = FullSize(self._to_rgb)(frame)
        resized = resized_size(*image.shape[:2], short_side=self._short_side)
        offsets = crop_offsets(*resized, size=self._size, num_crops=self._num_crops)
        return np.stack([self._crop_of_strip(type(frame), image, resized, offset) for offset in offsets])

    def _crop_of_strip(
        self, frame_type: Any, image: np.ndarray, resized: tuple[int, int], offset: tuple[int, int]
    ) -> np.ndarray:
        rows, columns = (
            _under_crop(length, target, start, self._size)
            for length, target, start in zip(image.shape[:2], resized, offset, strict=True)
        )
        piece = np.ascontiguousarray(image[rows[0], columns[0]])
        small = self._resized(frame_type.from_ndarray(piece, format="rgb24"), rows[1], columns[1])
        return small[rows[2] : rows[2] + self._size, columns[2] : columns[2] + self._size].copy()


def _under_crop(length: int, target: int, start: int, size: int) -> tuple[slice, int, int]:
    """Along one axis of ``length`` pixels that is resized to ``target``: the pixels under the crop of ``size`` at
    ``start`` (and two around them), their resized number, and where the crop starts in that."""
    first = max(0, start * length // target - 2)
    last = min(length, -(-(start + size) * length // target) + 2)
    resized = max(size, round((last - first) * target / length))
    return slice(first, last), resized, min(max(0, start - round(first * target / length)), resized - size)


def _pixels(rgb_frame: Any) -> np.ndarray:
    """(H, W, 3) uint8: a view of an rgb24 frame's memory, which it keeps alive."""
    plane = rgb_frame.planes[0]
    shape = rgb_frame.height, rgb_frame.width, 3
    return np.ndarray(shape, np.uint8, buffer=memoryview(plane), strides=(plane.line_size, 3, 1))
