"""geometry.py: sizes, crops and turns, against torchvision and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from vidray.video.geometry import Orientation, crop_offsets, resized_size

SIZES = [(240, 320), (320, 240), (720, 1280), (1080, 1920), (341, 256), (225, 224), (224, 224), (1, 1), (3, 1000)]


@pytest.mark.parametrize("short_side", [32, 224, 256])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resized_size_is_torchvisions(height: int, width: int, short_side: int) -> None:
    image = torch.zeros((1, height, width), dtype=torch.uint8)
    resized = functional.resize(image, [short_side], interpolation=functional.InterpolationMode.NEAREST)
    assert resized_size(height, width, short_side=short_side) == tuple(resized.shape[1:])


@pytest.mark.parametrize(("height", "width"), [(224, 298), (224, 299), (225, 224), (300, 301), (227, 400), (224, 224)])
def test_centre_crop_is_torchvisions(height: int, width: int) -> None:
    image = torch.arange(height * width).reshape(1, height, width)
    ((top, left),) = crop_offsets(height, width, size=224, num_crops=1)
    expected = functional.center_crop(image, [224, 224])
    assert torch.equal(image[:, top : top + 224, left : left + 224], expected)


CROPS = [
    ("wide", (224, 300), [(0, 0), (0, 38), (0, 76)]),
    ("high", (300, 224), [(0, 0), (38, 0), (76, 0)]),
    ("square", (224, 224), [(0, 0)] * 3),
    ("room on both sides", (256, 340), [(16, 0), (16, 58), (16, 116)]),
    ("room on both sides, high", (340, 256), [(0, 16), (58, 16), (116, 16)]),
]


@pytest.mark.parametrize(("name", "size", "expected"), CROPS, ids=[case[0] for case in CROPS])
def test_three_crops_lie_along_the_longer_side(name: str, size: tuple[int, int], expected: list) -> None:
    assert crop_offsets(*size, size=224, num_crops=3) == expected


def test_a_crop_must_fit() -> None:
    with pytest.raises(ValueError, match="cannot cut a square of 224 out of 223 x 500"):
        crop_offsets(223, 500, size=224, num_crops=1)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix_turns_counterclockwise_by_its_angle(degrees: int) -> None:
    cosine, sine = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    one = 65536
    matrix = np.array([one * cosine, -one * sine, 0, one * sine, one * cosine, 0, 0, 0, 1 << 30], dtype=np.int32)
    image = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    orientation = Orientation.from_display_matrix(matrix.tobytes())
    np.testing.assert_array_equal(orientation.apply(image), np.rot90(image, degrees // 90))
    assert orientation.size(2, 3) == np.rot90(image, degrees // 90).shape[:2]


def test_display_matrix_may_mirror() -> None:
    matrix = np.array([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], dtype=np.int32)
    image = np.arange(18).reshape(2, 3, 3)
    np.testing.assert_array_equal(Orientation.from_display_matrix(matrix).apply(image), image[:, ::-1])
