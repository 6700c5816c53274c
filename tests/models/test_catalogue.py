"""What ``vidray models`` says is true of the networks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.support.runs import ROOT
from vidray.cli.main import main
from vidray.models.catalogue import CATALOGUE, Entry, format_table
from vidray.models.families import FAMILIES
from vidray.models.movinet.variants import VARIANTS as MOVINETS
from vidray.models.pytorchvideo.variants import VARIANTS as PYTORCHVIDEO

CONFIGS: dict[str, dict[str, Any]] = {
    "base": {"num_labels": 400, "use_mean_pooling": True},
    "large": {
        "num_labels": 400,
        "use_mean_pooling": True,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "vitl-fpc16-256": {"num_labels": 174, "frames_per_clip": 16},
}


def config_of(entry: Entry) -> dict[str, Any]:
    if entry.family == "PyTorchVideo":
        return {"variant": entry.variant, "num_labels": 400}
    if entry.family == "MoViNet":
        name, kind = entry.variant.split("-")
        return {"variant": name, "stream": kind == "stream", "num_labels": 600}
    if entry.family == "TimeSformer":
        return {"num_labels": 400}
    return CONFIGS.get(entry.variant, {"num_labels": 400})


def documented_width(entry: Entry) -> int:
    """How many numbers docs/embeddings.md promises in an embedding."""
    lines = re.findall(r"^\| (.*) \| (\d+) \|$", (ROOT / "docs/embeddings.md").read_text(), re.MULTILINE)
    named = [int(width) for names, width in lines if re.search(rf"{entry.family} .*\b{entry.variant}\b", names)]
    rest = [int(width) for names, width in lines if re.search(rf"\ball (other )?{entry.family}\b", names)]
    return (named + rest)[0]


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: f"{entry.family}-{entry.variant}")
def test_parameters_and_frames_are_those_of_the_network(entry: Entry) -> None:
    family = FAMILIES[entry.model_type]
    model_class, config_class = family.load_classes()
    config = config_class(**config_of(entry))
    assert getattr(config, family.num_frames_key) == entry.num_frames
    assert getattr(config, family.size_key) <= entry.size
    with torch.device("meta"):
        model = model_class(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.num_parameters
    assert model.get_submodule(family.head_name).in_features == documented_width(entry)


def test_every_family_and_variant_is_listed() -> None:
    assert {entry.model_type for entry in CATALOGUE} == set(FAMILIES)
    variants = {entry.variant for entry in CATALOGUE}
    assert set(PYTORCHVIDEO) <= variants
    assert {f"{name}-{kind}" for name in MOVINETS for kind in ("base", "stream")} <= variants


def test_table_has_a_line_for_each_model_and_the_notes_below() -> None:
    lines = format_table(CATALOGUE).splitlines()
    assert lines[1 + len(CATALOGUE)] == ""
    assert sum(" needs num_frames" in line or " pipeline cannot score " in line for line in lines) == 2
    slow = next(line for line in lines if " slow_r50 " in line)
    for cell in ("32.45M", "8x8 256×256", "74.58 Kinetics-400", "PyTorchVideo's model zoo", "SLOW_8x8_R50.pyth"):
        assert cell in slow


def test_command_prints_one_family_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--family", "MoViNet"]) == 0
    printed = capsys.readouterr().out
    assert "a5-stream" in printed
    assert "slow_r50" not in printed
