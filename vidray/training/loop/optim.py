"""Which parameters learn, and how fast: groups, schedule, freezing, moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vidray.models.families import Family
from vidray.training.config import Hyper
from vidray.training.loop.layers import Depths

UNUSED = {"vjepa2": ("vjepa2.predictor",)}
"""Parts that a classifier's forward does not use. They get no gradient, and must not decay either."""


def make_optimizer(model: nn.Module, family: Family, hyper: Hyper) -> torch.optim.AdamW:
    """AdamW over what is to be trained, (0.9, 0.999) as VideoMAE and Transformers' Trainer have it.

    Raises UsageError if layer-wise decay is asked for and the family has no layers that vidray knows.
    """
    return torch.optim.AdamW(parameter_groups(model, family, hyper), lr=hyper.learning_rate, betas=(0.9, 0.999))


def parameter_groups(model: nn.Module, family: Family, hyper: Hyper) -> list[dict[str, Any]]:
    """Groups by (depth, decayed or not) with ``lr_scale``, in a fixed order. No decay on biases and 1-D parameters."""
    depths = Depths(model, family, needed=hyper.layer_decay < 1)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, decayed = depths.of(name), parameter.ndim > 1 and not name.endswith("bias")
        values = {
            "lr_scale": hyper.layer_decay ** (depths.top - depth),
            "weight_decay": hyper.weight_decay if decayed else 0.0,
            "params": [],
        }
        groups.setdefault((depth, decayed), values)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def learning_rate_factor(step: int, *, num_steps: int, hyper: Hyper) -> float:
    """What the learning rate is multiplied by in ``step`` (from 0) of ``num_steps``.

    Rises linearly to 1 over the warm-up and falls to 0 at ``num_steps``. The first step is not wasted at 0.
    """
    warmup = max(1, round(hyper.warmup_share * num_steps)) if hyper.warmup_share > 0 else 0
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    match hyper.schedule:
        case "linear":
            return 1 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case _:
            return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """``rate`` times each group's ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def freeze(model: nn.Module, family: Family, *, backbone: bool) -> None:
    """Stop what is not to be trained: parts that the forward does not use and, if asked, all but the head.

    A frozen backbone also stays in eval mode for good: ``train()`` would thaw batch-norm statistics and dropout.
    """
    head = family.head_key.rpartition(".")[0]
    for name, parameter in model.named_parameters():
        is_unused = name.startswith(UNUSED.get(family.model_type, ()))
        if is_unused or (backbone and not name.startswith(head + ".")):
            parameter.requires_grad_(False)
    if backbone:
        for module in _outside(model, head):
            _hold_in_eval(module)


def _outside(model: nn.Module, head: str) -> Iterable[nn.Module]:
    """Modules that are neither the head, nor in it, nor around it."""
    for name, module in model.named_modules():
        if name and not (name + ".").startswith(head + ".") and not (head + ".").startswith(name + "."):
            yield module


def _hold_in_eval(module: nn.Module) -> None:
    def train(mode: bool = True) -> nn.Module:
        return module

    module.eval()
    module.train = train  # type: ignore[method-assign]


class MovingAverage:
    """An exponential moving average of a network's parameters; buffers are copied.

    Args:
        tensors: the network's parameters and buffers by name, as ``state_dict`` gives them.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, torch.Tensor], *, step: int) -> None:
        """Take in the weights after ``step`` (from 1). The decay starts lower, so that the first weights fade."""
        decay = min(self.decay, step / (step + 10))
        for name, average in self.tensors.items():
            if average.is_floating_point():
                average.lerp_(tensors[name], 1 - decay)
            else:
                average.copy_(tensors[name])


def trainable(model: nn.Module) -> Sequence[nn.Parameter]:
    """The parameters that learn, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
