"""What only scores takes fewer passes over memory, and scores the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import VARIANTS, make_family
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.checkpoints.convert import write_checkpoint
from vidray.models import attention as attention_module
from vidray.models.attention import attention
from vidray.models.fused import transformers_attention

LABELS = ("left", "right")


@pytest.mark.parametrize("softcap", [2.0, None])
def test_softcapped_attention_is_that_of_transformers(softcap: float | None) -> None:
    from transformers.models.videoprism.modeling_videoprism import eager_attention_forward

    module = torch.nn.Module()
    module.num_key_value_groups = 1
    query, key, value = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0)) * 3
    expected, _ = eager_attention_forward(module, query, key, value, None, scaling=0.4, softcap=softcap)
    uncapped, _ = eager_attention_forward(module, query, key, value, None, scaling=0.4)
    got, _ = transformers_attention(module, query, key, value, None, scaling=0.4, softcap=softcap)
    torch.testing.assert_close(got, expected)
    assert torch.allclose(expected, uncapped, atol=1e-2) == (softcap is None)


@pytest.mark.parametrize("max_bytes", [2**26, 1000, 1], ids=["whole", "in parts", "row by row"])
@pytest.mark.parametrize("softcap", [2.0, None])
def test_attention_in_bf16_is_that_of_float64_but_for_rounding(softcap, max_bytes, monkeypatch) -> None:
    monkeypatch.setattr(attention_module, "_MAX_WEIGHTS_BYTES", max_bytes)
    query, key, value = torch.randn(3, 2, 4, 17, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits = query.double() @ key.double().transpose(2, 3) * 8**-0.5
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = logits.softmax(-1) @ value.double()
    got = attention(query, key, value, softcap=softcap)
    assert got.dtype == torch.bfloat16
    assert (got.double() - expected).abs().max() < 0.03


@pytest.mark.parametrize("model_type", ["vivit", "vjepa2", "videoprism_vision_model"])
def test_transformers_networks_attend_as_suits_the_device(model_type: str, tmp_path: Path) -> None:
    network = load_model(read_checkpoint(str(make_family(tmp_path, model_type, labels=LABELS))), only_scores=True)
    assert network.config._attn_implementation == "vidray"


@pytest.mark.parametrize("variant", list(VARIANTS))
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


def test_videoprism_keeps_its_attention_capped(tmp_path: Path) -> None:
    folder = make_family(tmp_path, "videoprism_vision_model", labels=LABELS, attn_logit_softcapping=0.5)
    network = load_model(read_checkpoint(str(folder)), only_scores=True)
    assert network.config._attn_implementation == "vidray"


def test_gelu_takes_one_pass(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(make_family(tmp_path, "videoprism_vision_model", labels=LABELS)))
    network = load_model(checkpoint, only_scores=True)
    gelus = [module for module in network.modules() if type(module).__name__ == "GELUActivation"]
    assert gelus
    assert all(module.act is torch.nn.functional.gelu for module in gelus)
