"""``vidray new``: a checkpoint with random weights, of any network that vidray knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vidray import __version__
from vidray.checkpoints.checkpoint import CheckpointMeta
from vidray.checkpoints.convert import read_labels
from vidray.checkpoints.write import new_folder, write_new_checkpoint
from vidray.flags import require, shown_as
from vidray.models.families import FAMILIES
from vidray.models.networks import Network, find_network

MAX_LABELS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class NewConfig:
    """Make an untrained checkpoint, with random weights: to try a network, or to train it from scratch. Nothing is
    downloaded."""

    family: Annotated[tyro.conf.Positional[str], shown_as("FAMILY")]
    """As `vidray models` names it: VideoMAE, TimeSformer, ViViT, "V-JEPA 2", VideoPrism, PyTorchVideo or one of its
    architectures (Slow, C2D, I3D, CSN, R2plus1D, SlowFast, X3D, MViT), MoViNet. Case does not count."""
    variant: Annotated[tyro.conf.Positional[str], shown_as("VARIANT")]
    """VideoMAE: small, base, large, huge. TimeSformer: base, hr, l. ViViT: b-16x2. V-JEPA 2: vitl, vith, vitg …
    PyTorchVideo: x3d_m, slow_r50 … MoViNet: a0 to a5, a0-stream … One that is unknown is refused with all names."""
    folder: Annotated[tyro.conf.Positional[str], shown_as("FOLDER")]
    """The folder to make. It must be new or empty."""
    labels: Annotated[str, shown_as("FILE|N")]
    """A text file with the names of the classes, one per line; or how many there are: class_0, class_1, …"""
    seed: int = 0
    """The same seed gives the same weights."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "--seed", self.seed, "a whole number from 0")


def new_checkpoint(config: NewConfig) -> CheckpointMeta:
    """Write the checkpoint, whole or not at all; returns what ``vidray.json`` says.

    Raises:
        UsageError: there is no such network, the labels are of no use, or the folder is in use.
    """
    name, network = find_network(config.family, config.variant)
    output = new_folder(config.folder)
    model = build_network(network, labels=_labels(config.labels), seed=config.seed)
    return write_new_checkpoint(
        model,
        network.view,
        output,
        training={"untrained": {"network": name, "seed": config.seed}},
        title=f"{name}, untrained",
        text=f"Random weights of seed {config.seed}, made by vidray {__version__}: its scores mean nothing yet.",
    )


def build_network(network: Network, *, labels: Sequence[str], seed: int) -> Any:
    """The classifier (a model of Transformers), on torch's default device, in eval mode. The random numbers of the
    caller stay as they were."""
    import torch

    model_class, config_class = FAMILIES[network.model_type].load_classes()
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config_class(**network.config, **names)).eval()


def _labels(text: str) -> list[str]:
    allowed = f"a file with at least two lines, or a number from 2 to {MAX_LABELS}"
    if re.fullmatch(r"-?\d{1,12}", text):
        require(2 <= int(text) <= MAX_LABELS, "--labels", text, allowed)
        return [f"class_{i}" for i in range(int(text))]
    labels = read_labels(Path(text))
    require(len(labels) >= 2, "--labels", text, allowed)
    return labels
