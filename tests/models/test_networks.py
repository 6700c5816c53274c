"""Every network of the table can be built as published, and is found by the names that people use."""

from __future__ import annotations

import pytest
import torch

from vidray.checkpoints.new import build_network
from vidray.errors import UsageError
from vidray.models.catalogue import CATALOGUE
from vidray.models.families import FAMILIES
from vidray.models.networks import NETWORKS, find_network
from vidray.models.processors import check_view, processor_json, read_view

ALL = [(family, variant) for family, variants in NETWORKS.items() for variant in variants]

MILLIONS = {
    # Of the backbone with its own head, as the papers and repositories say.
    ("VideoMAE", "small"): 22,
    ("VideoMAE", "base"): 87,
    ("VideoMAE", "large"): 305,
    ("VideoMAE", "huge"): 633,
    ("TimeSformer", "base"): 121.4,
    ("TimeSformer", "hr"): 121.8,
    ("TimeSformer", "l"): 121.6,
}
ENCODER_MILLIONS = {
    ("V-JEPA 2", "vitl-fpc64-256"): 300,
    ("V-JEPA 2", "vith-fpc64-256"): 600,
    ("V-JEPA 2", "vitg-fpc64-256"): 1000,
    ("V-JEPA 2", "vitg-fpc64-384"): 1000,
    ("VideoPrism", "base-f16r288"): 114,
    ("VideoPrism", "large-f8r288"): 354,
}
"""Their READMEs count the encoder alone, V-JEPA 2's in round numbers."""


@pytest.mark.parametrize(("family", "variant"), ALL)
def test_every_network_is_built_and_takes_its_view(family: str, variant: str) -> None:
    name, network = find_network(family, variant)
    assert name == f"{family} {variant}"
    with torch.device("meta"):
        model = build_network(network, labels=("a", "b", "c"), seed=0)
    assert model.classifier.weight.shape[0] == 3
    assert list(model.config.id2label.values()) == ["a", "b", "c"]
    row, config = FAMILIES[network.model_type], model.config.to_dict()
    check_view(network.view, config=config, family=row)
    again = read_view(processor_json(network.view, family=row), config=config, family=row)
    for key in ("num_frames", "size", "short_side", "squeeze"):
        assert getattr(again, key) == getattr(network.view, key)
    assert again.mean == pytest.approx(network.view.mean)
    assert again.std == pytest.approx(network.view.std)


@pytest.mark.parametrize("key", list(MILLIONS))
def test_size_is_the_published_one(key: tuple[str, str]) -> None:
    with torch.device("meta"):
        model = build_network(NETWORKS[key[0]][key[1]], labels=[str(i) for i in range(400)], seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(MILLIONS[key], rel=0.02)


@pytest.mark.parametrize("key", list(ENCODER_MILLIONS))
def test_encoder_has_the_published_size(key: tuple[str, str]) -> None:
    with torch.device("meta"):
        model = build_network(NETWORKS[key[0]][key[1]], labels=("a", "b"), seed=0)
    encoder = model.vjepa2.encoder if key[0] == "V-JEPA 2" else model.vision_model
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert millions == pytest.approx(ENCODER_MILLIONS[key], rel=0.06)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: f"{entry.family}-{entry.variant}")
def test_what_the_list_of_models_shows_can_be_made(entry) -> None:
    network = find_network(entry.family, entry.variant)[1]
    with torch.device("meta"):
        model = build_network(network, labels=[str(i) for i in range(_num_classes(entry))], seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.num_parameters
    view = network.view
    assert (network.model_type, view.num_frames, view.size) == (entry.model_type, entry.num_frames, entry.size)
    if entry.rate.startswith("x"):
        assert view.stride == int(entry.rate[1:])


def _num_classes(entry) -> int:
    return {"MoViNet": 600, "V-JEPA 2": 174}.get(entry.family, 400)


@pytest.mark.parametrize(
    ("family", "variant", "name"),
    [
        ("videomae", "BASE", "VideoMAE base"),
        ("vjepa2", "vitl", "V-JEPA 2 vitl-fpc16-256"),
        ("V-JEPA-2", "ViTg", "V-JEPA 2 vitg-fpc64-256"),
        ("vivit", "b", "ViViT b-16x2"),
        ("x3d", "m", "X3D x3d_m"),
        ("SLOWFAST", "r50", "SlowFast slowfast_r50"),
        ("slow", "slow_r50", "Slow slow_r50"),
        ("pytorchvideo", "x3d-m", "PyTorchVideo x3d_m"),
        ("movinet", "a0", "MoViNet a0-base"),
        ("MoViNet", "A3-stream", "MoViNet a3-stream"),
    ],
)
def test_names_are_found_however_they_are_written(family: str, variant: str, name: str) -> None:
    assert find_network(family, variant)[0] == name


def test_all_of_pytorchvideo_are_found_by_their_architecture_too() -> None:
    names = {name for family in NETWORKS for name in NETWORKS[family] if family not in ("PyTorchVideo", "MoViNet")}
    assert set(NETWORKS["PyTorchVideo"]) <= names


@pytest.mark.parametrize(
    ("family", "variant", "message"),
    [
        ("resnet", "r50", r"FAMILY: got 'resnet', allowed are VideoMAE, TimeSformer.*MoViNet"),
        ("x3d", "xl", r"VARIANT: got 'xl', allowed for X3D are x3d_xs, x3d_s, x3d_m, x3d_l"),
        ("slow", "slowfast_r50", r"allowed for Slow are slow_r50"),
        ("videomae", "", r"VARIANT: got ''"),
    ],
)
def test_unknown_ones_are_refused_with_those_that_there_are(family: str, variant: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_network(family, variant)
