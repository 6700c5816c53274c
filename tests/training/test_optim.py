"""Parameter groups, schedules, drop path and freezing do what the recipes say, on every family's real network."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torchvision.ops import StochasticDepth

from tests.support.checkpoints import TINY
from tests.support.training_parts import make_config, make_model
from vidray.errors import UsageError
from vidray.models.families import FAMILIES, Family
from vidray.training.loop.layers import add_drop_path
from vidray.training.loop.optim import (
    freeze,
    learning_rate_factor,
    make_optimizer,
    moving_average,
    parameter_groups,
    restore_moving_average,
    set_learning_rate,
    trainable,
)

_THREE_LAYERS: dict[str, dict[str, Any]] = {
    name: {"num_hidden_layers": 3} for name in ("videomae", "timesformer", "vivit", "vjepa2")
} | {"videoprism_vision_model": {"num_spatial_layers": 3, "num_temporal_layers": 2}}
_NUM_LAYERS = {
    "videoprism_vision_model": 5,
    "pytorchvideo_resnet": 5,  # the stem and four stages
    "pytorchvideo_slowfast": 5,
    "pytorchvideo_x3d": 6,  # and the convolutions of the head
    "pytorchvideo_mvit": 16,
    "movinet": 6,
}
_HAS_ITS_STEM_IN_THE_STACK = ("pytorchvideo_resnet", "pytorchvideo_slowfast", "pytorchvideo_x3d")


def build(model_type: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model_class, config_class = FAMILIES[model_type].load_classes()
    model = model_class(config_class(**TINY[model_type] | _THREE_LAYERS.get(model_type, {}), num_labels=3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rezero", "norm_c.weight")):  # which start at 0 and hide their branches
                parameter.fill_(0.5)
    return model


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads of tiny networks wait for each other on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pixels_for(model: Any, family: Family, num_videos: int) -> torch.Tensor:
    """(N, T, C, H, W) noise of the size that the model is for."""
    num_frames, size = getattr(model.config, family.num_frames_key), getattr(model.config, family.size_key)
    return torch.randn(num_videos, num_frames, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def built(request) -> tuple[torch.nn.Module, str]:
    return build(request.param), request.param


def test_every_parameter_is_in_one_group_and_each_layer_learns_slower_than_the_one_above(built):
    model, name = built
    hyper = make_config(layer_decay=0.5, weight_decay=0.05).hyper
    groups = parameter_groups(model, FAMILIES[name], hyper)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scales) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    by_name = {key: scales[id(parameter)] for key, parameter in model.named_parameters()}
    num_layers = _NUM_LAYERS.get(name, 3)
    bottom = num_layers if name in _HAS_ITS_STEM_IN_THE_STACK else num_layers + 1
    assert by_name["classifier.weight"] == 1
    assert sorted(set(by_name.values())) == [0.5**power for power in range(bottom, -1, -1)]
    assert all(value == 0.5**bottom for key, value in by_name.items() if "encoder.embeddings" in key)


@pytest.mark.parametrize(
    ("name", "parameter", "power"),
    [
        ("pytorchvideo_resnet", "network.blocks.0.conv.weight", 5),
        ("pytorchvideo_resnet", "network.blocks.4.res_blocks.0.branch2.conv_a.weight", 1),
        ("pytorchvideo_x3d", "network.blocks.5.pool.pre_conv.weight", 1),
        ("pytorchvideo_mvit", "network.patch_embed.patch_model.weight", 17),
        ("pytorchvideo_mvit", "network.cls_positional_encoding.cls_token", 17),
        ("pytorchvideo_mvit", "network.norm_embed.weight", 0),
        ("movinet", "movinet.stem.conv.weight", 7),
        ("movinet", "movinet.blocks.5.rezero", 1),
        ("movinet", "movinet.project.conv.weight", 0),
        ("movinet", "head.weight", 0),
    ],
)
def test_layers_of_vidrays_own_families_are_where_they_should_be(name, parameter, power):
    model = build(name)
    groups = parameter_groups(model, FAMILIES[name], make_config(layer_decay=0.5).hyper)
    wanted = dict(model.named_parameters())[parameter]
    (scale,) = [group["lr_scale"] for group in groups if any(wanted is other for other in group["params"])]
    assert scale == 0.5**power


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
    pixels = pixels_for(model, family, 4)

    def logits() -> torch.Tensor:
        torch.manual_seed(2)
        return model(**{family.input_name: pixels}).logits.detach()

    model.eval()
    before = logits()
    add_drop_path(model, family, 0.9)
    drops = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    assert {round(drop.p, 3) for drop in drops} >= {0.0, 0.9}
    assert [drop.p for drop in drops] == sorted(drop.p for drop in drops)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(logits(), before, rtol=0, atol=0)
    for drop in drops:
        drop.train()  # these alone: in training, batch norm and dropout change the logits too
    trained = logits()
    torch.testing.assert_close(logits(), trained, rtol=0, atol=0)
    assert not torch.allclose(trained, before)


def test_an_unknown_family_is_refused_with_what_to_do():
    model, family = make_model("conv")
    with pytest.raises(UsageError, match=r"--drop-path.*tiny-conv, only those of movinet, .*take 0"):
        add_drop_path(model, family, 0.1)
    with pytest.raises(UsageError, match=r"--layer-decay.*tiny-conv, only those of movinet, .*take 1"):
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
    model(**{family.input_name: pixels_for(model, family, 2)}).logits.square().sum().backward()
    assert [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    assert len(trainable(model)) > 0


def test_the_moving_average_is_of_all_weights_and_statistics_by_name(built):
    """Whole numbers (counts, indices) are copied. The first step is copied, too; then the decay starts low."""
    model, _ = built
    model = copy.deepcopy(model).double()
    average = moving_average(model, 0.5)
    assert list(average.module.state_dict()) == list(model.state_dict())
    seen = []
    for step in range(1, 4):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(step)
        seen.append(copy.deepcopy(model.state_dict()))
        average.update_parameters(model)
    for name, tensor in average.module.state_dict().items():
        expected = seen[0][name]
        for step, current in ((2, seen[1][name]), (3, seen[2][name])):
            decay = min(0.5, step / (step + 10))
            expected = decay * expected + (1 - decay) * current if current.is_floating_point() else current
        torch.testing.assert_close(tensor, expected)


def test_a_restored_moving_average_goes_on_as_if_it_had_never_stopped():
    model, _ = make_model("conv")
    average = moving_average(model, 0.9)
    for _ in range(3):
        average.update_parameters(model)
    again = moving_average(model, 0.9)
    restore_moving_average(again, average.module.state_dict(), step=3)
    with torch.no_grad():
        model.classifier.weight.add_(1)
    for each in (average, again):
        each.update_parameters(model)
    assert torch.equal(again.module.classifier.weight, average.module.classifier.weight)
    assert not torch.equal(again.module.classifier.weight, model.classifier.weight)
