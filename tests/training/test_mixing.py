"""Targets and losses agree with torch's own where it has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.training_parts import make_config
from vidray.training.loop.mixing import cross_entropy, inverse_frequency, mix, soft_targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_equal_torchs_cross_entropy(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 3, 3, 2])
    targets = soft_targets(labels, num_labels=4, smoothing=smoothing)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-6)


def test_class_weights_make_classes_equal_and_leave_the_mean_alone():
    labels = np.array([0] * 8 + [1] * 2)
    weights = inverse_frequency(labels, num_labels=2)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    assert weights[0] * 8 == pytest.approx(weights[1] * 2, rel=1e-5)
    losses = cross_entropy(
        torch.zeros(1, 2),
        soft_targets(torch.tensor([1]), num_labels=2, smoothing=0),
        class_weights_C=torch.tensor(weights),
    )
    assert losses.item() == pytest.approx(np.log(2) * 2.5, rel=1e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_pixels_and_targets_are_mixed_by_the_same_share(kind):
    hyper = make_config(**{"mixup": 0.0, "cutmix": 0.0, kind: 1.0}).hyper
    pixels = torch.stack([torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)]).double()
    targets = torch.eye(2, dtype=torch.float64)
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, soft = mix(pixels, targets, hyper=hyper)
        assert mixed[0].mean().item() == pytest.approx(soft[0, 1].item(), abs=1e-12)
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(2, dtype=torch.float64))
        assert torch.equal(mixed[:, 0], mixed[:, 1]), "the same in all frames"
        shares.append(soft[0, 0].item())
    assert min(shares) < 0.4 < 0.8 < max(shares)


def test_with_both_each_comes_by_lot_and_the_same_seed_gives_the_same():
    hyper = make_config(mixup=1.0, cutmix=1.0).hyper
    pixels, targets = torch.rand(2, 1, 3, 8, 8).round(), torch.eye(2)
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        first, targets_of_first = mix(pixels, targets, hyper=hyper)
        torch.manual_seed(seed)
        again, targets_of_again = mix(pixels, targets, hyper=hyper)
        assert torch.equal(first, again)
        assert torch.equal(targets_of_first, targets_of_again)
        kinds.add(bool(((first == 0) | (first == 1)).all()))
    assert kinds == {True, False}


def test_the_mixed_clips_are_plain_tensors():
    """torchvision marks videos by a class of its own, which the network and autograd need not meet."""
    mixed, _ = mix(torch.rand(2, 1, 3, 8, 8), torch.eye(2), hyper=make_config(mixup=1.0).hyper)
    assert type(mixed) is torch.Tensor


def test_nothing_is_mixed_unless_asked_or_with_one_clip():
    pixels, targets = torch.rand(2, 1, 3, 8, 8), torch.eye(2)
    assert mix(pixels, targets, hyper=make_config().hyper)[0] is pixels
    one = mix(pixels[:1], targets[:1], hyper=make_config(mixup=1.0).hyper)
    assert torch.equal(one[0], pixels[:1])
