"""A forward waits for nothing but the network."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from vidray.models.predict import normalise
from vidray.types import ViewConfig


def num_copies(views: torch.Tensor, view: ViewConfig) -> int:
    """Tensors that normalising brings to another type or device. On a GPU each from the CPU waits until it has done
    all that it was asked for before."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        normalise(views, view=view)
    return sum(event.count for event in found.key_averages() if event.key == "aten::_to_copy")


def test_normalising_makes_its_constants_once():
    # Another mean than anybody else's, so that nobody has asked for its constants before.
    view = ViewConfig(num_frames=2, size=32, num_clips=1, mean=(0.4, 0.41, 0.42))
    views = torch.empty(1, 2, 32, 32, 3, dtype=torch.uint8, device="meta")
    assert num_copies(views, view) > 1
    assert num_copies(views, view) == 1, "only the pixels themselves"


def test_constants_made_in_inference_mode_serve_training():
    view = ViewConfig(num_frames=1, size=32, num_clips=1, mean=(0.43, 0.41, 0.42))
    views = torch.full((1, 1, 32, 32, 3), 255, dtype=torch.uint8)
    with torch.inference_mode():
        normalise(views, view=view)
    weight = torch.ones(3, requires_grad=True)
    pixels = normalise(views, view=view)
    (pixels * weight.view(1, 1, 3, 1, 1)).sum().backward()
    by_hand = [(1 - mean) / std * 32 * 32 for mean, std in zip(view.mean, view.std, strict=True)]
    torch.testing.assert_close(weight.grad, torch.tensor(by_hand), rtol=1e-4, atol=0)
