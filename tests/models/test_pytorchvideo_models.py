"""PyTorchVideo's networks behind Transformers' interface: equal to the originals, and no trap sprung."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import TINY, make_family, processor_values, write_processor
from tests.support.closeness import FLOAT64_ROUNDING, assert_differs, assert_same
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.errors import UsageError
from vidray.models.families import FAMILIES
from vidray.models.processors import check_view
from vidray.models.pytorchvideo.modeling import MODEL_CLASSES
from vidray.models.pytorchvideo.network import find_head, pathways
from vidray.models.pytorchvideo.variants import VARIANTS, find_variant

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILY_NAMES = [name for name in FAMILIES if name.startswith("pytorchvideo_")]
ARCHITECTURES = [name.removeprefix("pytorchvideo_") for name in FAMILY_NAMES]


def build(architecture: str, *, num_labels: int = 3, **changes: Any) -> Any:
    """A tiny network with random norms, so that nothing is lost behind a zero."""
    model_class = MODEL_CLASSES[architecture]
    torch.manual_seed(0)
    values = {**TINY[f"pytorchvideo_{architecture}"], "num_labels": num_labels, **changes}
    model = model_class(model_class.config_class(**values)).eval()  # type: ignore[misc]
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) * 0.5)
    return model


def build_published(variant: str) -> Any:
    model_class = MODEL_CLASSES[VARIANTS[variant].architecture]
    with torch.device("meta"):
        return model_class(model_class.config_class(variant=variant, num_labels=400))  # type: ignore[misc]


def pixels_for(model: Any, *, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """(B, T, C, H, W) noise of the size that the model is for."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.num_frames, 3, config.image_size, config.image_size, generator=generator)


def published_pools(network: torch.nn.Module) -> list[tuple[int, ...]]:
    return [
        tuple(int(size) for size in module.kernel_size)  # type: ignore[union-attr]
        for module in network.modules()
        if isinstance(module, torch.nn.AvgPool3d)
    ]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_has_the_published_number_of_parameters_and_pools(variant: str) -> None:
    from pytorchvideo.models import hub

    model = build_published(variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == VARIANTS[variant].num_parameters
    with torch.device("cpu" if variant.startswith("mvit") else "meta"):
        original = getattr(hub, variant)()
    assert published_pools(model.network) == published_pools(original)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("variant", "millions"),
    [  # as the facts of the plan have them
        ("slow_r50", 32.45),
        ("slowfast_r50", 34.57),
        ("x3d_xs", 3.79),
        ("x3d_s", 3.79),
        ("x3d_m", 3.79),
        ("x3d_l", 6.15),
        ("csn_r101", 22.21),
        ("r2plus1d_r50", 28.11),
        ("mvit_base_16x4", 36.61),
    ],
)
def test_table_says_what_the_model_zoo_says(variant: str, millions: float) -> None:
    assert round(VARIANTS[variant].num_parameters / 1e6, 2) == millions


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gives_the_logits_of_the_original_network(architecture: str) -> None:
    model = build(architecture).double()
    network, pixels = model.network, pixels_for(model).double()
    with torch.no_grad():
        got = model(pixels).logits
        find_head(network).proj = model.classifier  # as PyTorchVideo has it: inside the head, before the mean
        clip = pixels.transpose(1, 2)
        expected = network(pathways(clip) if architecture == "slowfast" else clip)
    assert_same(got, expected, relative=FLOAT64_ROUNDING)
    assert_differs(expected[0], expected[1], relative=FLOAT64_ROUNDING, factor=1e7)


@pytest.mark.parametrize("architecture", ["resnet", "slowfast", "x3d"])
def test_larger_clips_give_the_logits_of_the_original_network(architecture: str) -> None:
    model = build(architecture).double()
    config = model.config
    num_frames = config.num_frames + (0 if architecture == "slowfast" else 4)
    pixels = torch.randn(1, num_frames, 3, config.image_size + 40, config.image_size + 33).double()
    with torch.no_grad():
        got = model(pixels).logits
        find_head(model.network).proj = model.classifier
        clip = pixels.transpose(1, 2)
        expected = model.network(pathways(clip) if architecture == "slowfast" else clip)
    assert_same(got, expected, relative=FLOAT64_ROUNDING)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wrapping_leaves_the_network_as_pytorchvideo_initialised_it(architecture: str) -> None:
    from vidray.models.pytorchvideo.network import build_network

    model_class = MODEL_CLASSES[architecture]
    config = model_class.config_class(**TINY[f"pytorchvideo_{architecture}"])  # type: ignore[misc]
    torch.manual_seed(5)
    expected, _ = build_network(config)
    torch.manual_seed(5)
    got = model_class(config).network
    for name, tensor in expected.state_dict().items():
        assert torch.equal(got.state_dict()[name], tensor), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_head_of_a_loaded_model_is_small_and_finite(architecture: str, tmp_path: Path) -> None:
    model = build(architecture, num_labels=3)
    model.save_pretrained(tmp_path)
    names = {index: f"class {index}" for index in range(40)}
    again = type(model).from_pretrained(
        tmp_path, id2label=names, label2id={v: k for k, v in names.items()}, ignore_mismatched_sizes=True
    )
    weight, bias = again.classifier.weight, again.classifier.bias
    assert weight.shape[0] == 40
    assert 0.018 < weight.std().item() < 0.022
    assert bias.abs().max() == 0
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_head_of_a_new_model_is_small_and_finite(architecture: str) -> None:
    weight = build(architecture, num_labels=40).classifier.weight
    assert 0.018 < weight.std().item() < 0.022


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_reloads_to_identical_logits(model_type: str, tmp_path: Path) -> None:
    model = build(model_type.removeprefix("pytorchvideo_"))
    model.save_pretrained(tmp_path)
    write_processor(tmp_path, processor_values(32), style="new")
    again = load_model(read_checkpoint(str(tmp_path)))
    assert type(again) is type(model)
    pixels = pixels_for(model)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, again(pixels).logits)


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_auto_class_loads_it(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForVideoClassification

    model = build(model_type.removeprefix("pytorchvideo_"))
    model.save_pretrained(tmp_path)
    again = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert again.config.num_frames == TINY[model_type]["num_frames"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    pixels = pixels_for(model).double()
    with torch.no_grad():
        assert_same(again.double()(pixels).logits, model.double()(pixels).logits, relative=FLOAT64_ROUNDING)


@pytest.mark.parametrize("architecture", ["x3d", "resnet"])
def test_head_gives_logits_not_probabilities_even_in_training(architecture: str) -> None:
    variant = {"x3d": "x3d_xs", "resnet": "r2plus1d_r50"}[architecture]
    model = build(architecture, variant=variant).train()
    with torch.no_grad():
        model.classifier.bias.fill_(5.0)
        logits = model(pixels_for(model)).logits
    assert (logits.sum(dim=1) > 5).all()
    assert find_head(model.network).activation is None


def test_slowfast_leaves_the_callers_clip_alone_and_can_be_called_again() -> None:
    model = build("slowfast")
    pixels = pixels_for(model)
    before = pixels.clone()
    with torch.no_grad():
        first, second = model(pixels).logits, model(pixels).logits
    assert torch.equal(pixels, before)
    assert torch.equal(first, second)


def test_slow_pathway_spans_the_clip_from_first_to_last_frame() -> None:
    clip = torch.arange(32.0).view(1, 1, 32, 1, 1)
    slow, fast = pathways(clip)
    assert slow.flatten().tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert torch.equal(fast, clip)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_is_the_cross_entropy_and_reaches_every_parameter(architecture: str) -> None:
    model = build(architecture).double().train()
    labels = torch.tensor([0, 2])
    output = model(pixels_for(model).double(), labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    assert_same(output.loss, expected, relative=FLOAT64_ROUNDING)
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("architecture", "shape", "allowed"),
    [
        ("resnet", (1, 3, 3, 32, 32), "slow_r50 takes at least 4 frames of at least 32×32 pixels"),
        ("resnet", (1, 4, 3, 32, 31), "at least 32×32"),
        ("resnet", (1, 3, 4, 32, 32), r"\(batch, frames, 3, height, width\)"),
        ("resnet", (4, 3, 32, 32), r"got \(4, 3, 32, 32\)"),
        ("slowfast", (1, 10, 3, 32, 32), "just 8 frames of at least 32×32"),
        ("slowfast", (1, 8, 3, 32, 16), "just 8 frames of at least 32×32"),
        ("x3d", (1, 4, 3, 16, 32), "x3d_xs takes .*at least 4 frames"),
        ("mvit", (1, 8, 3, 32, 32), "only what it was built for, 4 frames of 32×32"),
        ("mvit", (1, 4, 3, 64, 64), "only what it was built for, 4 frames of 32×32"),
    ],
)
def test_clip_that_the_network_cannot_take_is_refused_with_what_it_can(
    architecture: str, shape: tuple[int, ...], allowed: str
) -> None:
    with pytest.raises(UsageError, match=allowed):
        build(architecture)(torch.zeros(shape))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_published_view_fits_the_published_network(variant: str) -> None:
    row = VARIANTS[variant]
    config = {"variant": variant, "num_frames": row.num_frames, "image_size": row.train_size}
    check_view(row.view, config=config, family=FAMILIES[f"pytorchvideo_{row.architecture}"])
    assert row.view.mean == (0.45,) * 3
    assert row.view.std == (0.225,) * 3
    assert str(row.num_frames) in row.weights_file or row.architecture in ("x3d", "slowfast")


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("slow_r50", (8, 8, 256, None)),
        ("slowfast_r101", (32, 2, 256, None)),
        ("x3d_s", (13, 6, 182, None)),
        ("mvit_base_32x3", (32, 3, 224, 256)),
    ],
)
def test_published_frames_rate_crop_and_side(variant: str, expected: tuple) -> None:
    view = find_variant(variant).view
    assert (view.num_frames, view.stride, view.size, view.short_side) == expected


def test_folder_without_vidray_json_has_the_published_rate(tmp_path: Path) -> None:
    view = read_checkpoint(str(make_family(tmp_path, "pytorchvideo_x3d", labels=("a", "b")))).view
    assert (view.num_frames, view.stride, view.span, view.num_clips) == (4, 12, "stride", 5)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("resnet", {"variant": "x3d_m"}, "slow_r50, c2d_r50, i3d_r50, csn_r101, r2plus1d_r50.*'x3d_m'"),
        ("resnet", {"variant": "csn_r101", "num_frames": 4}, "num_frames of at least 8"),
        ("slowfast", {"num_frames": 10}, "num_frames that 4 divides"),
        ("x3d", {"image_size": 16}, "image_size of at least 32"),
    ],
)
def test_config_that_cannot_be_built_is_refused(architecture: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODEL_CLASSES[architecture].config_class(**changes)  # type: ignore[misc]
