"""Parameter groups, schedules, drop path and freezing do what the recipes say, on every family's real network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from training_parts import make_config, make_model

from vidray.errors import UsageError
from vidray.models.families import FAMILIES
from vidray.training.optim import (
    DropPath,
    MovingAverage,
    add_drop_path,
    freeze,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
    trainable,
)

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "num_frames": 4,
}
_MORE = {
    "vjepa2": {
        "crop_size": 32,
        "frames_per_clip": 4,
        "pred_hidden_size": 32,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
        "num_pooler_layers": 1,
    },
    "videoprism_vision_model": {
        "num_spatial_layers": 3,
        "num_temporal_layers": 2,
        "patch_size": 16,
        "tubelet_size": [1, 16, 16],
    },
}


def build(model_type: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model_class, config_class = FAMILIES[model_type].load_classes()
    return model_class(config_class(**_SIZES | _MORE.get(model_type, {}), num_labels=3))


LAYERED = ("timesformer", "videomae", "videoprism_vision_model", "vivit", "vjepa2")
"""The families whose layers layer-wise decay and drop path know; the networks of convolutions are refused."""


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(LAYERED)))
def test_what_needs_layers_is_refused_for_families_without_known_ones(name):
    model, family = torch.nn.Linear(1, 1), FAMILIES[name]
    with pytest.raises(UsageError, match="--layer-decay"):
        parameter_groups(model, family, make_config(layer_decay=0.5).hyper)
    with pytest.raises(UsageError, match="--drop-path"):
        add_drop_path(model, family, 0.1)
    assert parameter_groups(model, family, make_config(layer_decay=1.0).hyper)


@pytest.fixture(scope="module", params=LAYERED)
def built(request) -> tuple[torch.nn.Module, str]:
    return build(request.param), request.param


def test_every_parameter_is_in_one_group_and_each_layer_learns_slower_than_the_one_above(built):
    model, name = built
    hyper = make_config(layer_decay=0.5, weight_decay=0.05).hyper
    groups = parameter_groups(model, FAMILIES[name], hyper)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scales) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    by_name = {key: scales[id(parameter)] for key, parameter in model.named_parameters()}
    num_layers = 5 if name.startswith("videoprism") else 3
    assert by_name["classifier.weight"] == 1
    assert sorted(set(by_name.values())) == [0.5**power for power in range(num_layers + 1, -1, -1)]
    assert all(value == 0.5 ** (num_layers + 1) for key, value in by_name.items() if "encoder.embeddings" in key)


def test_biases_and_vectors_have_no_weight_decay(built):
    model, name = built
    groups = parameter_groups(model, FAMILIES[name], make_config(weight_decay=0.05).hyper)
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1 and not key.endswith("bias")), key


def test_drop_path_reaches_each_layer_changes_training_alone_and_no_name(built):
    model, name = built
    model = copy.deepcopy(model)
    names = list(model.state_dict())
    family = FAMILIES[name]
    size = _SIZES["image_size"] if not name.startswith("videoprism") else model.config.image_size
    torch.manual_seed(1)
    pixels = torch.randn(4, _SIZES["num_frames"], 3, size, size)

    def logits() -> torch.Tensor:
        torch.manual_seed(2)
        return model(**{family.input_name: pixels}).logits.detach()

    model.eval()
    before = logits()
    add_drop_path(model, family, 0.9)
    drops = [module for module in model.modules() if isinstance(module, DropPath)]
    assert {round(drop.probability, 3) for drop in drops} >= {0.0, 0.9}
    assert list(model.state_dict()) == names
    torch.testing.assert_close(logits(), before, rtol=0, atol=0)
    model.train()
    trained = logits()
    torch.testing.assert_close(logits(), trained, rtol=0, atol=0)
    assert not torch.allclose(trained, before)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (out == out[:, :1, :1]).all()
    assert out.mean() == pytest.approx(1, abs=0.05)


def test_an_unknown_family_is_refused_with_what_to_do():
    model, family = make_model("conv")
    with pytest.raises(UsageError, match=r"--drop-path.*tiny-conv"):
        add_drop_path(model, family, 0.1)
    with pytest.raises(UsageError, match=r"--layer-decay.*tiny-conv"):
        parameter_groups(model, family, make_config(layer_decay=0.7).hyper)
    add_drop_path(model, family, 0.0)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 0.1),
        ("linear", 9, 1.0),
        ("linear", 10, 1.0),
        ("linear", 55, 0.5),
        ("cosine", 55, 0.5),
        ("cosine", 32, 0.5 * (1 + math.cos(math.pi * 22 / 90))),
        ("constant", 99, 1.0),
    ],
)
def test_the_learning_rate_rises_and_falls_as_the_schedule_says(schedule, step, expected):
    hyper = make_config(schedule=schedule, warmup_share=0.1).hyper
    assert learning_rate_factor(step, num_steps=100, hyper=hyper) == pytest.approx(expected)


def test_the_learning_rate_of_each_group_is_scaled():
    model = build("videomae")
    optimizer = make_optimizer(model, FAMILIES["videomae"], make_config(layer_decay=0.5).hyper)
    set_learning_rate(optimizer, 0.8)
    assert {group["lr"] for group in optimizer.param_groups} == {0.8, 0.4, 0.2, 0.1, 0.05}


def test_a_frozen_backbone_stays_as_it_is_through_train_and_a_step():
    model, family = make_model("conv")
    freeze(model, family, backbone=True)
    before = copy.deepcopy(model.state_dict())
    model.train()
    assert not model.norm.training
    assert not model.dropout.training
    assert model.classifier.training
    optimizer = make_optimizer(model, family, make_config(learning_rate=0.1).hyper)
    model(torch.randn(2, 8, 3, 16, 16)).logits.sum().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_what_a_classifier_does_not_use_is_frozen_so_that_every_other_parameter_gets_a_gradient(built):
    model, name = built
    model = copy.deepcopy(model).train()
    family = FAMILIES[name]
    freeze(model, family, backbone=False)
    size = _SIZES["image_size"] if not name.startswith("videoprism") else model.config.image_size
    model(**{family.input_name: torch.randn(2, 4, 3, size, size)}).logits.square().sum().backward()
    assert [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    assert len(trainable(model)) > 0


def test_the_moving_average_follows_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage(model.state_dict(), 0.5)
    start = average.tensors["weight"].item()
    with torch.no_grad():
        model.weight.fill_(start + 1)
    for step in (20, 21):
        average.update(model.state_dict(), step=step)
    assert average.tensors["weight"].item() == pytest.approx(start + 0.75)
