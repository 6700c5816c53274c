"""Features in place of scores: of whole classifiers, of classifiers without a head, and of backbones as published."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.scoring.test_embeddings import features_of
from tests.scoring.test_predictor import make_video
from tests.support.checkpoints import TINY, make_family, make_stream, make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_differs, assert_same
from vidray.checkpoints.checkpoint import load_model, read_checkpoint, without_labels
from vidray.errors import UsageError
from vidray.models.families import FAMILIES
from vidray.models.predict import normalise
from vidray.scoring.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("a", "b", "c")

BACKBONES = {
    "videomae": "VideoMAEModel",
    "timesformer": "TimesformerModel",
    "vivit": "VivitModel",
    "vjepa2": "VJEPA2Model",
    "videoprism_vision_model": "VideoPrismVisionModel",
}
"""The class of Transformers that a family's backbone is published as."""


def make(folder: Path, family: str) -> Path:
    return make_stream(folder, labels=LABELS) if family == "stream" else make_family(folder, family, labels=LABELS)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """With other weights, and without the vidray.json that was written for those before."""
    file = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(file)).items()}, file, {"format": "pt"})
    (folder / "vidray.json").unlink(missing_ok=True)
    return folder


def without(folder: Path, *beginnings: str) -> Path:
    """Without the tensors whose names begin so."""
    return rewrite(folder, lambda weights: {n: t for n, t in weights.items() if not n.startswith(beginnings)})


def make_backbone(folder: Path, family: str, class_name: str, **changes: Any) -> Path:
    """As Transformers saves it, with a processor JSON."""
    make_family(folder, family, labels=LABELS, **changes)
    row = FAMILIES[family]
    _, config_class = row.load_classes()
    torch.manual_seed(5)
    model = getattr(importlib.import_module(row.module), class_name)(config_class(**TINY[family], **changes))
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at 0 or 1 would hide that it is lost
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def tokens_of(folder: Path, family: str, class_name: str, views_VTHWC: np.ndarray) -> torch.Tensor:
    """(V, tokens, features): by the backbone as Transformers loads and calls it."""
    row, checkpoint = FAMILIES[family], read_checkpoint(str(folder), require_head=False)
    network = getattr(importlib.import_module(row.module), class_name).from_pretrained(folder).eval()
    pixels = normalise(torch.from_numpy(views_VTHWC), view=checkpoint.view)
    with torch.inference_mode():
        return network(**{row.input_name: pixels}).last_hidden_state


def embedding_of(folder: Path, views: np.ndarray) -> np.ndarray:
    checkpoint = without_labels(read_checkpoint(str(folder), require_head=False))
    (scores,) = Predictor(checkpoint, device="cpu", embedding="mean").predict([views])
    assert (scores.top_k, scores.logits, scores.error) == ((), None, None)
    assert scores.embedding is not None
    return scores.embedding


def some_views(folder: Path) -> np.ndarray:
    return make_video(read_checkpoint(str(folder), require_head=False).view, num_views=3)


@pytest.mark.parametrize("family", [*TINY, "stream"])
def test_a_classifier_s_features_are_the_embeddings_beside_its_labels(family: str, tmp_path) -> None:
    folder = make(tmp_path, family)
    views, checkpoint = some_views(folder), read_checkpoint(str(folder))
    (scores,) = Predictor(checkpoint, device="cpu", embedding="mean").predict([views])
    np.testing.assert_array_equal(embedding_of(folder, views), scores.embedding)
    (unit,) = Predictor(without_labels(checkpoint), device="cpu", embedding="unit").predict([views])
    assert_same(unit.embedding, scores.embedding / np.linalg.norm(scores.embedding), relative=FLOAT32_ROUNDING)


@pytest.mark.parametrize("family", [*TINY, "stream"])
def test_a_classifier_without_its_last_layer_has_the_features_of_the_whole(family: str, tmp_path) -> None:
    folder = make(tmp_path, family)
    views = some_views(folder)
    expected = features_of(folder, views).mean(dim=0)
    without(folder, "classifier.")
    assert_same(embedding_of(folder, views), expected, relative=FLOAT32_ROUNDING)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_backbone_as_published_has_the_features_that_its_classifier_would_be_given(family: str, tmp_path) -> None:
    """The first token where that is what the family's classifier sees, else the mean of all."""
    folder = make_backbone(tmp_path, family, BACKBONES[family])
    views = some_views(folder)
    tokens = tokens_of(folder, family, BACKBONES[family], views)
    expected = {True: tokens[:, 0], False: tokens.mean(dim=1)}
    sees_first = family in ("timesformer", "vivit")
    embedding = embedding_of(folder, views)
    np.testing.assert_allclose(embedding, expected[sees_first].mean(dim=0), rtol=1e-5, atol=1e-5)
    assert_differs(embedding, expected[not sees_first].mean(dim=0), relative=FLOAT32_ROUNDING, factor=100)


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_a_videomae_checkpoint_of_pre_training_is_taken_without_its_decoder(use_mean_pooling: bool, tmp_path) -> None:
    folder = make_backbone(tmp_path, "videomae", "VideoMAEForPreTraining", use_mean_pooling=use_mean_pooling)
    assert {"decoder", "encoder_to_decoder", "mask_token", "videomae"} == {
        name.partition(".")[0] for name in load_file(folder / "model.safetensors")
    }
    views = some_views(folder)
    tokens = tokens_of(folder, "videomae", "VideoMAEModel", views)
    np.testing.assert_allclose(embedding_of(folder, views), tokens.mean(dim=(0, 1)), rtol=1e-5, atol=1e-5)


def test_features_of_half_precision_are_float32_and_near(tmp_path) -> None:
    folder = make_backbone(tmp_path, "vjepa2", "VJEPA2Model")
    views, checkpoint = some_views(folder), without_labels(read_checkpoint(str(folder), require_head=False))
    (scores,) = Predictor(checkpoint, device="cpu", precision="bf16", embedding="mean").predict([views])
    assert scores.embedding.dtype == np.float32
    assert_same(scores.embedding, embedding_of(folder, views), relative=0.05)


# -- what is refused ---------------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as refused:
        load_model(without_labels(read_checkpoint(str(folder), require_head=False)))
    return str(refused.value)


def test_a_tensor_of_the_backbone_that_is_missing_is_named(tmp_path) -> None:
    folder = without(make(tmp_path, "videomae"), "classifier.", "videomae.encoder.layer.0.output.dense.bias")
    assert "parameters without a tensor in the file: videomae.encoder.layer.0.output.dense.bias" in refusal(folder)


@pytest.mark.parametrize(
    ("family", "lost", "named"),
    [
        ("videomae", ["classifier.bias"], "in the file: classifier.bias"),
        ("videomae", ["fc_norm."], "in the file: fc_norm.bias, fc_norm.weight"),
        ("videomae", ["classifier.", "fc_norm.bias"], "in the file: fc_norm.bias"),
        ("vjepa2", ["classifier.", "pooler.query_tokens"], "in the file: pooler.query_tokens"),
        ("videoprism_vision_model", ["classifier.", "head."], "in the file: head.k_proj.bias"),
    ],
)
def test_half_a_classifier_or_pooler_is_refused(family: str, lost: list[str], named: str, tmp_path) -> None:
    assert named in refusal(without(make(tmp_path, family), *lost))


@pytest.mark.parametrize("name", ["extra.weight", "decoder_head.weight"])
def test_a_tensor_that_is_not_of_pre_training_is_refused(name: str, tmp_path) -> None:
    folder = make_backbone(tmp_path, "videomae", "VideoMAEForPreTraining")
    rewrite(folder, lambda weights: {**weights, name: torch.zeros(2)})
    assert f"tensors that the model has no place for: {name}" in refusal(folder)


def test_tensors_of_pre_training_are_left_over_beside_a_classifier(tmp_path) -> None:
    folder = rewrite(make_videomae(tmp_path), lambda weights: {**weights, "mask_token": torch.zeros(1, 1, 32)})
    assert "tensors that the model has no place for: mask_token" in refusal(folder)


def test_a_tensor_of_another_shape_is_refused(tmp_path) -> None:
    folder = make_backbone(tmp_path, "timesformer", "TimesformerModel")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    assert "tensors of another shape than the model's" in refusal(folder)
