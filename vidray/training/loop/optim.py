"""Which parameters learn, and how fast: groups, schedule, freezing, moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vidray.models.families import Family
from vidray.training.config import Hyperparameters
from vidray.training.loop.layers import LayerDepths

UNUSED = {"vjepa2": ("vjepa2.predictor",)}
"""Parts that a classifier's forward does not use. They get no gradient, and must not decay either."""


def make_optimizer(model: nn.Module, family: Family, hyper: Hyperparameters) -> torch.optim.AdamW:
    """AdamW over what is to be trained, (0.9, 0.999) as VideoMAE and Transformers' Trainer have it.

    Raises UsageError if layer-wise decay is asked for and the family has no layers that vidray knows.
    """
    return torch.optim.AdamW(parameter_groups(model, family, hyper), lr=hyper.learning_rate, betas=(0.9, 0.999))


def parameter_groups(model: nn.Module, family: Family, hyper: Hyperparameters) -> list[dict[str, Any]]:
    """Groups by (depth, decayed or not) with ``lr_scale``, in a fixed order. No decay on biases and 1-D parameters."""
    depths = LayerDepths(model, family, required=hyper.layer_decay < 1)
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


def learning_rate_factor(step: int, *, num_steps: int, hyper: Hyperparameters) -> float:
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
    # Not LambdaLR: it counts steps by itself, which would be one more thing to store in a state and to restore.
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def freeze(model: nn.Module, family: Family, *, backbone: bool) -> None:
    """Stop what is not to be trained: parts that the forward does not use and, if asked, all but the head.

    A frozen backbone also stays in eval mode for good: ``train()`` would thaw batch-norm statistics and dropout.
    """
    head = family.head_name
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


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network's weights and floating-point buffers, in ``.module``.

    Call ``update_parameters(model)`` after each step. The decay starts lower, so that the first weights fade.
    """

    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], _: Tensor | int) -> None:
        if averages[0].is_floating_point():
            step = int(average.n_averaged) + 1
            get_ema_multi_avg_fn(min(decay, step / (step + 10)))(averages, currents, step)
        else:  # counts and indices, of which torch's function would cut off an average's fraction
            for mean, current in zip(averages, currents, strict=True):
                mean.copy_(current)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


def restore_moving_average(average: AveragedModel, tensors: dict[str, Tensor], *, step: int) -> None:
    """Go on from ``average.module.state_dict()`` as it was after ``step``."""
    average.module.load_state_dict(tensors)
    average.n_averaged.fill_(step)


def trainable(model: nn.Module) -> Sequence[nn.Parameter]:
    """The parameters that learn, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
