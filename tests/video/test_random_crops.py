"""The crops of training clips lie in the picture, cover it as asked for, and follow from their seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from vidray.video.random_crops import ClipDraw, CropConfig, DrawnBox, draw_box

RANDOM = CropConfig(mode="random", min_short_side=256, max_short_side=320)
RESIZED = CropConfig(mode="resized", min_short_side=320, max_short_side=320)


def boxes(crop: CropConfig, *, height: int = 240, width: int = 320, num: int = 400) -> list[DrawnBox]:
    return [draw_box(height, width, size=224, draw=ClipDraw(crop=crop, seed=seed)) for seed in range(num)]


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    seed=st.integers(0, 2**64 - 1),
    crop=st.sampled_from([RANDOM, RESIZED]),
)
def test_every_box_lies_in_its_picture(height: int, width: int, seed: int, crop: CropConfig) -> None:
    box = draw_box(height, width, size=224, draw=ClipDraw(crop=crop, seed=seed))
    assert crop.min_short_side <= min(box.picture) <= crop.max_short_side
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= box.picture[0] - box.height
    assert 0 <= box.left <= box.picture[1] - box.width


def test_random_crops_have_the_models_size_and_every_scale_and_place() -> None:
    drawn = boxes(RANDOM)
    assert {(box.height, box.width) for box in drawn} == {(224, 224)}
    assert {min(box.picture) for box in drawn} > {256, 290, 320}
    places = np.array([box.left / (box.picture[1] - 224) for box in drawn])
    assert (np.histogram(places, bins=4, range=(0, 1))[0] > 60).all()


def test_resized_crops_are_distributed_as_torchvisions() -> None:
    drawn = [(box.height, box.width) for box in boxes(RESIZED, num=1500)]
    picture = torch.empty(3, 320, 426)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(1500)]
    for statistic in (_area, _aspect):
        ours, reference = (np.sort([statistic(*shape) for shape in shapes]) for shapes in (drawn, theirs))
        assert np.abs(ours - reference).mean() < 0.02
        assert ours[0] == pytest.approx(reference[0], abs=0.03)
        assert ours[-1] == pytest.approx(reference[-1], abs=0.03)


def _area(height: int, width: int) -> float:
    return height * width / (320 * 426)


def _aspect(height: int, width: int) -> float:
    return width / height


def test_a_strip_gets_the_largest_box_that_the_aspect_allows() -> None:
    box = draw_box(10, 10_000, size=224, draw=ClipDraw(crop=RESIZED, seed=1))
    assert box.height <= 320
    assert 3 / 4 - 0.01 <= box.width / box.height <= 4 / 3 + 0.01


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    small = CropConfig(mode="random", min_short_side=100, max_short_side=100)
    with pytest.raises(ValueError, match="square of 224 out of a picture with a short side of 100"):
        draw_box(240, 320, size=224, draw=ClipDraw(crop=small, seed=0))


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "centre", "min_short_side": 1, "max_short_side": 2},
        {"mode": "random", "min_short_side": 3, "max_short_side": 2},
        {"mode": "resized", "min_short_side": 1, "max_short_side": 2, "min_area": 0.0},
    ],
)
def test_what_makes_no_sense_is_refused(values: dict) -> None:
    with pytest.raises(ValueError):
        CropConfig(**values)
