"""From a decoded frame to the pixels that are kept: resized, turned as displayed, cropped, RGB.

Works on PyAV's frames and reformatters without importing PyAV (``decode`` alone does), hence their types ``Any``. A
reformatter is swscale's memory of one conversion, and must be reused for the next frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vidray.video.geometry import UPRIGHT, Orientation, crop_offsets, resized_size
from vidray.video.random_crops import ClipDraw, DrawnBox, draw_box

Picture = np.ndarray

VIA_422 = frozenset({"yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p", "yuva422p"})
"""Formats that PyAV's ``to_rgb`` converts with swscale's fast tables."""

MAX_ASPECT = 32
"""Pictures longer than this many times their short side are cropped before they are resized."""


def orientation_of(frame: Any) -> Orientation:
    """How a frame must be turned to be displayed."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else Orientation.from_display_matrix(memoryview(matrix))


def displayed_size(frame: Any, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """(height, width) of a frame as displayed, whose stored pixels are ``pixel_aspect`` times as wide as high."""
    return orientation_of(frame).size(frame.height, max(1, round(frame.width * pixel_aspect)))


class FullSize:
    """Converts frames to (H, W, 3) uint8 RGB as displayed, bit for bit as PyAV's ``to_rgb`` (and PyTorchVideo)."""

    def __init__(self, to_rgb: Any) -> None:
        self._to_rgb = to_rgb

    def __call__(self, frame: Any) -> Picture:
        rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1)
        return orientation_of(frame).apply(_pixels(rgb)).copy()


Box = tuple[int, int, int, int]
"""(top, left, height, width) in a resized picture, as displayed."""


class Resizer:
    """Cuts boxes out of frames that are resized on the way; docs/preprocessing.md gives the reasons.

    swscale resizes with its bilinear filter, which spans all source pixels under a target pixel (antialiased, as
    torchvision's ``antialias=True``). It does so in 4:2:2, or in planar RGB where the source is not 8-bit 4:2:0 or
    4:2:2, and then the small picture becomes RGB: nearer to torchvision than resizing and converting in one call, and
    three times as fast.
    """

    def __init__(self, *, resize: Any, to_rgb: Any) -> None:
        self._resize, self._to_rgb = resize, to_rgb

    def cut(self, frame: Any, picture: tuple[int, int], boxes: Sequence[Box]) -> list[np.ndarray]:
        """(height, width, 3) uint8 RGB of each box; views of memory that nobody else changes.

        Args:
            picture: (height, width) to which the whole frame is resized, as displayed.
        """
        if max(picture) > MAX_ASPECT * min(picture):
            return self._cut_strip(frame, picture, boxes)
        orientation = orientation_of(frame)
        # Resized before it is turned: turning is then a view of few pixels.
        image = orientation.apply(self.resized(frame, *orientation.size(*picture)))
        return [image[top : top + height, left : left + width] for top, left, height, width in boxes]

    def resized(self, frame: Any, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB of a whole frame, as stored."""
        if frame.interlaced_frame:
            frame = _as_progressive(frame)
        middle = "yuv422p" if frame.format.name in VIA_422 else "gbrp"
        small = self._resize.reformat(
            frame, width=width, height=height, format=middle, interpolation="BILINEAR", threads=1
        )
        return _pixels(self._to_rgb.reformat(small, format="rgb24", threads=1))

    def _cut_strip(self, frame: Any, picture: tuple[int, int], boxes: Sequence[Box]) -> list[np.ndarray]:
        """The same for a very long picture, of which a whole resized copy could be huge: only what lies under the
        boxes, and two pixels around them, is resized."""
        image = FullSize(self._to_rgb)(frame)
        return [self._box_of_strip(type(frame), image, picture, box) for box in boxes]

    def _box_of_strip(self, frame_type: Any, image: np.ndarray, picture: tuple[int, int], box: Box) -> np.ndarray:
        top, left, height, width = box
        rows = _under_crop(image.shape[0], picture[0], top, height)
        columns = _under_crop(image.shape[1], picture[1], left, width)
        piece = np.ascontiguousarray(image[rows[0], columns[0]])
        small = self.resized(frame_type.from_ndarray(piece, format="rgb24"), rows[1], columns[1])
        return small[rows[2] : rows[2] + height, columns[2] : columns[2] + width].copy()


class Crops:
    """Converts frames to (num_crops, size, size, 3) uint8 RGB: the crops of a view config."""

    def __init__(
        self, *, short_side: int, squeeze: bool, size: int, num_crops: int, pixel_aspect: float, resizer: Resizer
    ) -> None:
        self._short_side, self._squeeze, self._size, self._num_crops = short_side, squeeze, size, num_crops
        self._pixel_aspect, self._resizer = pixel_aspect, resizer

    def __call__(self, frame: Any) -> Picture:
        shown = displayed_size(frame, self._pixel_aspect)
        picture = resized_size(*shown, short_side=self._short_side, squeeze=self._squeeze)
        offsets = crop_offsets(*picture, size=self._size, num_crops=self._num_crops)
        boxes = [(top, left, self._size, self._size) for top, left in offsets]
        return np.stack(self._resizer.cut(frame, picture, boxes))


class DrawnCrops:
    """Converts the frames of one training clip to (1, size, size, 3) uint8 RGB, all through the same box.

    The first frame draws it; should the picture's size change later in the stream, it is resized as the first was.
    """

    def __init__(
        self, *, size: int, draw: ClipDraw, pixel_aspect: float, resizer: Resizer, box_resizer: Resizer
    ) -> None:
        """Args:
        box_resizer: brings the box to ``size``; another one, because each remembers one conversion.
        """
        self._size, self._draw, self._pixel_aspect = size, draw, pixel_aspect
        self._resizer, self._box_resizer = resizer, box_resizer
        self._box: DrawnBox | None = None

    def __call__(self, frame: Any) -> Picture:
        if self._box is None:
            self._box = draw_box(*displayed_size(frame, self._pixel_aspect), size=self._size, draw=self._draw)
        box = self._box
        image = self._resizer.cut(frame, box.picture, [(box.top, box.left, box.height, box.width)])[0]
        if image.shape[:2] != (self._size, self._size):
            piece = type(frame).from_ndarray(np.ascontiguousarray(image), format="rgb24")
            image = self._box_resizer.resized(piece, self._size, self._size)
        return image[None].copy()


def _as_progressive(frame: Any) -> Any:
    """A copy that is not flagged as interlaced: swscale resizes the fields of such frames one by one, which combs what
    moves, and most are flagged but progressive. (Deinterlacing proper is not done: a view's rows are means of both
    fields, as torchvision's are.)"""
    copy = type(frame)(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, copy.planes, strict=True):
        num_bytes = min(source.line_size, target.line_size)
        rows = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in (source, target)]
        rows[1][:, :num_bytes] = rows[0][:, :num_bytes]
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    return copy


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
