"""The network to train: a checkpoint's backbone, with a head for the labels at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vidray.checkpoints.checkpoint import Checkpoint, local_folder
from vidray.errors import UsageError
from vidray.models.loading import align, quiet
from vidray.training.config import TrainConfig
from vidray.training.loop.layers import add_drop_path
from vidray.training.loop.optim import freeze


def build_model(checkpoint: Checkpoint, config: TrainConfig, *, labels: tuple[str, ...]) -> nn.Module:
    """The network with the checkpoint's weights, on the CPU, in training mode, frozen and with drop path as asked for.

    The head is kept if the checkpoint was trained for these very labels, and else begins anew from ``config.seed``.

    Raises:
        UsageError: weights of the backbone are missing or of another shape.
    """
    family = checkpoint.family
    model = _load(checkpoint, labels)
    if not checkpoint_has_head(checkpoint, model, labels):
        _initialise_head(model, family.head_name, seed=config.seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    add_drop_path(model, family, config.hyper.drop_path)
    freeze(model, family, backbone=config.freeze_backbone)
    return model.train()


def checkpoint_has_head(checkpoint: Checkpoint, model: Any, labels: tuple[str, ...]) -> bool:
    """True if the checkpoint's head was trained for these labels in this order."""
    return checkpoint.labels == labels and not model.vidray_missing_head


def _load(checkpoint: Checkpoint, labels: tuple[str, ...]) -> Any:
    family = checkpoint.family
    model_class, config_class = family.load_classes()
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    values = {key: value for key, value in checkpoint.config.items() if key not in ("num_labels", *names)}
    values |= {**names, "problem_type": "single_label_classification"}
    folder = local_folder(checkpoint)
    with quiet():
        model, report = model_class.from_pretrained(
            folder,
            config=config_class.from_dict(values),
            dtype=torch.float32,
            attn_implementation=family.attention,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # the head's are expected, others are refused below
            output_loading_info=True,
        )
    lacking = {key if isinstance(key, str) else key[0] for kind in _LACKS for key in report.get(kind) or ()}
    _refuse_incomplete_backbone(lacking, model.base_model_prefix, folder)
    align(model)
    model.vidray_missing_head = any(key.startswith(f"{family.head_name}.") for key in lacking)
    return model


_LACKS = ("missing_keys", "mismatched_keys")


def _refuse_incomplete_backbone(lacking: set[str], prefix: str, folder: str) -> None:
    """What belongs to a classifier alone may begin at random; a backbone that does would learn nothing good."""
    if bad := sorted(key for key in lacking if key.startswith(prefix + ".")):
        raise UsageError(
            f"the weights in {folder} lack parts of the backbone or have them in another shape: "
            f"{', '.join(bad[:8])}{' …' if len(bad) > 8 else ''}"
        )


def _initialise_head(model: nn.Module, head_name: str, *, seed: int) -> None:
    """Small random weights and no bias, whatever is there: the same on every rank and in every attempt."""
    head = model.get_submodule(head_name)
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        else:
            nn.init.zeros_(parameter)
