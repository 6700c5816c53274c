"""Augmentation follows from the clip's seed alone, is the same in all frames, and does what its name says."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vidray.training.config import TrainConfig
from vidray.training.data.augment import AugmentConfig, augment, augment_config, crop_config
from vidray.training.data.rand_augment import NUM_OPERATIONS, OPERATIONS, PROBABILITY, rand_augment
from vidray.types import ViewConfig

VIEW = ViewConfig(num_frames=8, size=224)
NONE = AugmentConfig(flip=False, randaugment=0, erasing=0.0)
ALL = AugmentConfig(flip=True, randaugment=7, erasing=0.25)
FILL = [124.0, 116.0, 104.0]


def still_clip(num_frames: int = 4, size: int = 32) -> np.ndarray:
    """(T, H, W, C) of one picture, again and again: smooth, coloured, the left unlike the right."""
    axis = np.linspace(0, 255, size)
    red, green = np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[:, None], (size, size))
    picture = np.stack([red, green, 0.5 * red + 0.3 * green], axis=2).round().astype(np.uint8)
    return np.repeat(picture[None], num_frames, axis=0)


def test_nothing_asked_for_changes_nothing() -> None:
    clip = still_clip()
    for seed in range(20):
        np.testing.assert_array_equal(augment(clip, NONE, seed=seed), clip)


def test_all_frames_of_a_clip_are_augmented_alike() -> None:
    clip = still_clip()
    num_changed = 0
    for seed in range(60):
        augmented = augment(clip, ALL, seed=seed)
        assert augmented.shape == clip.shape
        assert augmented.dtype == np.uint8
        for frame in augmented[1:]:
            np.testing.assert_array_equal(frame, augmented[0])
        num_changed += not np.array_equal(augmented, clip)
    assert num_changed > 45


def test_a_clip_is_the_same_in_any_order_and_any_thread() -> None:
    clip = still_clip()
    expected = {seed: augment(clip, ALL, seed=seed) for seed in range(40)}
    torch.manual_seed(1)
    random.seed(1)
    seeds = list(range(40))
    random.Random(3).shuffle(seeds)
    with ThreadPoolExecutor(4) as threads:
        for seed, augmented in zip(seeds, threads.map(lambda s: augment(clip, ALL, seed=s), seeds), strict=True):
            np.testing.assert_array_equal(augmented, expected[seed])


def test_augmenting_leaves_the_global_generators_and_the_clip_alone() -> None:
    clip = still_clip()
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for seed in range(20):
        augment(clip, ALL, seed=seed)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    np.testing.assert_array_equal(clip, still_clip())


def test_every_other_clip_is_mirrored() -> None:
    clip, config = still_clip(), AugmentConfig(flip=True, randaugment=0, erasing=0.0)
    results = [augment(clip, config, seed=seed) for seed in range(200)]
    mirrored = sum(np.array_equal(result, clip[:, :, ::-1]) for result in results)
    same = sum(np.array_equal(result, clip) for result in results)
    assert mirrored + same == 200
    assert 70 < mirrored < 130


def test_without_flip_left_stays_left() -> None:
    clip, config = still_clip(), AugmentConfig(flip=False, randaugment=0, erasing=0.5)
    for seed in range(50):
        columns = augment(clip, config, seed=seed)[0, :, :, 0].astype(float)
        assert np.median(columns[:, :8]) < np.median(columns[:, -8:])


def test_erasing_puts_noise_of_the_models_colours_into_one_box() -> None:
    clip = np.full((2, 64, 64, 3), 7, np.uint8)
    config = AugmentConfig(flip=False, randaugment=0, erasing=0.25)
    shares, noise = [], []
    for seed in range(400):
        augmented = augment(clip, config, seed=seed)
        changed = (augmented[0] != 7).any(axis=2)
        if changed.any():
            rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
            box = augmented[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert changed.sum() > 0.95 * box.shape[0] * box.shape[1], "a box, and all of it"
            shares.append(box.shape[0] * box.shape[1] / 64**2)
            noise.append(box.reshape(-1, 3))
    assert 70 < len(shares) < 130, "a quarter of 400"
    assert min(shares) < 0.05
    assert 0.25 < max(shares) < 0.36
    colours = np.concatenate(noise).astype(float)
    np.testing.assert_allclose(colours.mean(axis=0), [124, 116, 104], atol=4)
    assert (colours.std(axis=0) > 45).all()


def as_tchw(frames_THWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_shape_and_does_more_when_stronger(name: str) -> None:
    clip = as_tchw(60 + still_clip() // 2)
    clip[..., 10:18, 10:18] = 220
    changes = []
    for level in (0.1, 0.9):
        changed = OPERATIONS[name](clip, level, FILL)
        assert changed.shape == clip.shape
        assert changed.dtype == torch.uint8
        changes.append(float((changed.float() - clip.float()).abs().mean()))
    assert changes[1] > 0
    assert changes[1] >= changes[0]


@pytest.mark.parametrize("name", ["rotate", "shear_x", "translate_x", "brightness", "contrast", "color"])
def test_signed_operations_go_both_ways(name: str) -> None:
    clip = as_tchw(still_clip())
    assert not torch.equal(OPERATIONS[name](clip, 0.7, FILL), OPERATIONS[name](clip, -0.7, FILL))


@pytest.mark.parametrize("name", ["auto_contrast", "equalize", "contrast"])
def test_what_adapts_to_a_picture_adapts_to_the_whole_clip(name: str) -> None:
    """A clip that gets brighter still does so after equalizing or stretching contrast."""
    levels = np.linspace(60, 180, 6).astype(np.uint8)
    clip = as_tchw(np.broadcast_to(levels[:, None, None, None], (6, 16, 16, 3)).copy())
    means = OPERATIONS[name](clip, 0.7, FILL).float().mean(dim=(1, 2, 3))
    assert (means.diff() > 0).all()


def test_rand_augment_does_each_of_four_operations_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def note(clip: torch.Tensor, level: float, fill: list[float]) -> torch.Tensor:
        calls.append(level)
        return clip

    monkeypatch.setattr("vidray.training.data.rand_augment.OPERATIONS", {"note": note})
    for seed in range(500):
        rand_augment(still_clip(1, 2), magnitude=7, fill=(0.0, 0.0, 0.0), rng=random.Random(seed))
    assert len(calls) == pytest.approx(500 * NUM_OPERATIONS * PROBABILITY, rel=0.1)
    strengths = np.abs(calls)
    assert np.mean(strengths) == pytest.approx(0.7, abs=0.01)
    assert np.std(strengths) == pytest.approx(0.05, abs=0.01)
    assert np.mean(np.sign(calls)) == pytest.approx(0, abs=0.1)


def test_recipes_ask_for_what_they_say() -> None:
    def made(**options: object):
        config = TrainConfig(source=("x",), model="x", output="x", **options)  # type: ignore[arg-type]
        return augment_config(config, VIEW), crop_config(config, VIEW)

    augmented, crop = made()
    assert (augmented.flip, augmented.randaugment, augmented.erasing) == (True, 0, 0.0)
    assert (crop.mode, crop.min_short_side, crop.max_short_side) == ("random", 256, 320)
    augmented, crop = made(recipe="videomae", flip=False)
    assert (augmented.flip, augmented.randaugment, augmented.erasing) == (False, 7, 0.25)
    assert (crop.mode, crop.max_short_side, crop.min_area) == ("resized", 320, 0.08)


def test_scales_follow_the_models_size() -> None:
    config = TrainConfig(source=("x",), model="x", output="x")
    crop = crop_config(config, ViewConfig(num_frames=8, size=112))
    assert (crop.min_short_side, crop.max_short_side) == (128, 160)


def test_a_worker_that_needs_no_rand_augment_loads_no_torch() -> None:
    code = "import sys, vidray.training.data.clips; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
