"""What only scores takes fewer passes over memory, and scores the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import VARIANTS, make_family
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.checkpoints.write import write_checkpoint

LABELS = ("left", "right")
OF_EACH_KIND = (
    *("videomae", "timesformer", "slow_r50", "r2plus1d_r50", "csn_r101", "slowfast_r50", "x3d_s", "mvit_base_16x4"),
    *("movinet_a0_base", "movinet_a0_stream", "movinet_a2_stream"),
)
"""Variants that are tried each time."""


@pytest.mark.parametrize(
    "variant", [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.long) for name in VARIANTS]
)
def test_a_network_that_only_scores_has_the_logits_of_one_that_trains(variant: str, tmp_path: Path) -> None:
    model_type, changes = VARIANTS[variant]
    folder = make_family(tmp_path / "new", model_type, labels=LABELS, **changes)
    made = read_checkpoint(str(folder))
    network, view = load_model(made), made.view
    shake(network)
    write_checkpoint(network, view, tmp_path / "shaken")
    checkpoint = read_checkpoint(str(tmp_path / "shaken"))
    trains, scores = load_model(checkpoint), load_model(checkpoint, only_scores=True)
    pixels = torch.randn(2, view.num_frames, 3, view.size, view.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = (network(**{checkpoint.family.input_name: pixels}).logits for network in (trains, scores))
    assert expected.isfinite().all()
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


def shake(network: torch.nn.Module) -> None:
    """Random statistics and scales: as they are made, batch norms and ReZero change next to nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            for tensor, offset in ((module.running_mean, 0), (module.running_var, 1)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.3 + offset)
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("rezero"):
            parameter.data += torch.rand(parameter.shape, generator=generator) * 0.3


@pytest.mark.parametrize(
    ("model_type", "num_left"),
    [("pytorchvideo_resnet", 0), ("pytorchvideo_slowfast", 4), ("pytorchvideo_x3d", 1), ("movinet", 0)],
)
def test_batch_norms_become_part_of_convolutions(model_type: str, num_left: int, tmp_path: Path) -> None:
    """Left are those of SlowFast's ways from fast to slow, and that of X3D's two-part stem."""
    network = load_model(read_checkpoint(str(make_family(tmp_path, model_type, labels=LABELS))), only_scores=True)
    assert sum(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules()) == num_left
