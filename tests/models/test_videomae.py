"""Our VideoMAE for scoring: the logits of Transformers', and nobody notices which of the two computed them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from tests.support.checkpoints import make_videomae
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.models.videomae import VideoMAEScorer, load_scorer

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "num_labels": 5,
}


def save(folder: Path, **options: object) -> VideoMAEForVideoClassification:
    """A network with weights large enough that every part of it matters."""
    torch.manual_seed(0)
    model = VideoMAEForVideoClassification(VideoMAEConfig(**SMALL, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options", [{}, {"use_mean_pooling": False}, {"qv_bias": False}, {"tubelet_size": 4, "layer_norm_eps": 1e-3}]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_logits_are_those_of_transformers(tmp_path, options, dtype, tolerance):
    model = save(tmp_path, **options)
    config = VideoMAEConfig(**SMALL, **options).to_dict()
    scorer = load_scorer(config, files=[tmp_path / "model.safetensors"], num_labels=5, dtype=dtype)
    pixels = torch.randn(2, 8, 3, 32, 32)
    with torch.inference_mode():
        expected = model(pixel_values=pixels).logits
        assert expected.std() > 0.3, "all alike: a wrong network could pass"
        torch.testing.assert_close(scorer(pixels.to(dtype)).logits.float(), expected, atol=tolerance, rtol=0.05)


def test_what_does_not_fit_to_the_letter_is_left_to_transformers(tmp_path):
    save(tmp_path)
    file = tmp_path / "model.safetensors"
    config = VideoMAEConfig(**SMALL).to_dict()

    def load(config=config, num_labels=5):
        return load_scorer(config, files=[file], num_labels=num_labels, dtype=torch.float32)

    assert load() is not None
    assert load(config | {"hidden_act": "relu"}) is None
    assert load(config | {"image_size": [32, 32]}) is None
    assert load(config | {"num_hidden_layers": 4}) is None
    assert load(num_labels=6) is None
    tensors = load_file(file)
    save_file(tensors | {"videomae.layernorm.weight": tensors["fc_norm.weight"].clone()}, file)
    assert load() is None, "a norm that this network has not"
    query = tensors.pop("videomae.encoder.layer.1.attention.attention.query.weight")
    save_file(tensors, file)
    assert load() is None, "a tensor is missing"
    save_file(tensors | {"videomae.encoder.layer.1.attention.q": query}, file)
    assert load() is None, "another name"


def test_both_names_of_the_biases_are_read_but_not_side_by_side(tmp_path):
    save(tmp_path)
    config = VideoMAEConfig(**SMALL).to_dict()
    file = tmp_path / "model.safetensors"
    published = load_file(file)
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in published
    in_memory = {
        name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): tensor.clone()
        for name, tensor in published.items()
    }
    first = load_scorer(config, files=[file], num_labels=5, dtype=torch.float32)
    save_file(in_memory, file)
    second = load_scorer(config, files=[file], num_labels=5, dtype=torch.float32)
    pixels = torch.randn(1, 8, 3, 32, 32)
    assert torch.equal(first(pixels).logits, second(pixels).logits)
    save_file({**published, **in_memory}, file)
    assert load_scorer(config, files=[file], num_labels=5, dtype=torch.float32) is None


def test_a_predictor_of_videomae_scores_without_importing_transformers(tmp_path):
    folder = make_videomae(tmp_path)
    code = """
import sys, numpy
from vidray.checkpoints.checkpoint import read_checkpoint
from vidray.scoring.predictor import Predictor
predictor = Predictor(read_checkpoint(sys.argv[1]))
assert predictor.predict([numpy.zeros(predictor.view.views_shape, numpy.uint8)])[0].error is None
assert "transformers" not in sys.modules, "seconds of every predictor's start"
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_training_and_evaluation_still_get_transformers_own_network(tmp_path):
    checkpoint = read_checkpoint(str(make_videomae(tmp_path)))
    assert isinstance(load_model(checkpoint), VideoMAEForVideoClassification)
    assert isinstance(load_model(checkpoint, only_scores=True), VideoMAEScorer)
