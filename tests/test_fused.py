"""What only scores takes fewer passes over memory, and scores the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import make_family

from vidray.checkpoint import load_model, read_checkpoint
from vidray.models.fused import softcapped_attention


@pytest.mark.parametrize("softcap", [2.0, None])
def test_softcapped_attention_is_that_of_transformers(softcap: float | None) -> None:
    from transformers.models.videoprism.modeling_videoprism import eager_attention_forward

    module = torch.nn.Module()
    module.num_key_value_groups = 1
    query, key, value = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0)) * 3
    expected, _ = eager_attention_forward(module, query, key, value, None, scaling=0.4, softcap=softcap)
    uncapped, _ = eager_attention_forward(module, query, key, value, None, scaling=0.4)
    got, _ = softcapped_attention(module, query, key, value, None, scaling=0.4, softcap=softcap)
    torch.testing.assert_close(got, expected)
    assert torch.allclose(expected, uncapped, atol=1e-2) == (softcap is None)


def test_a_network_that_only_scores_has_the_logits_of_one_that_trains(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(
        str(make_family(tmp_path, "videoprism_vision_model", labels=("a", "b"), attn_logit_softcapping=0.5))
    )
    trains, scores = load_model(checkpoint), load_model(checkpoint, only_scores=True)
    view = checkpoint.view
    pixels = torch.randn(2, view.num_frames, 3, view.size, view.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = (network(pixel_values_videos=pixels).logits for network in (trains, scores))
    assert (trains.config._attn_implementation, scores.config._attn_implementation) == ("eager", "vidray_softcapped")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_gelu_takes_one_pass(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(make_family(tmp_path, "videoprism_vision_model", labels=("a", "b"))))
    network = load_model(checkpoint, only_scores=True)
    gelus = [module for module in network.modules() if type(module).__name__ == "GELUActivation"]
    assert gelus
    assert all(module.act is torch.nn.functional.gelu for module in gelus)
