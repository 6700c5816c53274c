"""Which parameters learn, and how fast: groups, layer-wise decay, schedule, drop path, freezing, moving average."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vidray.errors import UsageError
from vidray.models.families import Family
from vidray.training.config import Hyper

_STACKS: dict[str, tuple[str, ...]] = {
    "videomae": ("videomae.encoder.layer",),
    "timesformer": ("timesformer.encoder.layer",),
    "vivit": ("vivit.layers",),
    "vjepa2": ("vjepa2.encoder.layer",),
    "videoprism_vision_model": ("vision_model.spatial_layers", "vision_model.temporal_layers"),
}
"""Where each family keeps its layers, from the input upwards."""

_BRANCH_ENDS: dict[str, tuple[str, ...]] = {
    "videomae": ("attention.output.dropout", "output.dropout"),
    "timesformer": ("drop_path",),
    "vivit": ("dropout",),
    "vjepa2": ("drop_path",),
    "videoprism_vision_model": ("dropout",),
}
"""The module of a layer (without parameters) that each residual branch goes through just before it is added."""

_UNUSED = {"vjepa2": ("vjepa2.predictor",)}
"""Parts that a classifier's forward does not use. They get no gradient, and must not decay either."""


def make_optimizer(model: nn.Module, family: Family, hyper: Hyper) -> torch.optim.AdamW:
    """AdamW over what is to be trained, (0.9, 0.999) as VideoMAE and Transformers' Trainer have it.

    Raises UsageError if layer-wise decay is asked for and the family has no layers that vidray knows.
    """
    return torch.optim.AdamW(parameter_groups(model, family, hyper), lr=hyper.learning_rate, betas=(0.9, 0.999))


def parameter_groups(model: nn.Module, family: Family, hyper: Hyper) -> list[dict[str, Any]]:
    """Groups by (depth, decayed or not) with ``lr_scale``, in a fixed order. No decay on biases and 1-D parameters."""
    depths = _Depths(model, family, needed=hyper.layer_decay < 1)
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


class _Depths:
    """0 for embeddings, i + 1 for layer i, and the top for all above the layers (as in BEiT and VideoMAE)."""

    def __init__(self, model: nn.Module, family: Family, *, needed: bool) -> None:
        self._starts: dict[str, int] = {}
        num_layers = 0
        for stack in _STACKS.get(family.model_type, ()):
            self._starts[stack] = num_layers
            num_layers += len(_children(model, stack))
        if needed and num_layers == 0:
            raise UsageError(f"--layer-decay: vidray does not know the layers of {family.model_type}; take 1")
        self.top = num_layers + 1

    def of(self, name: str) -> int:
        for stack, start in self._starts.items():
            if match := re.match(re.escape(stack) + r"\.(\d+)\.", name):
                return start + int(match[1]) + 1
        return 0 if "embeddings" in name else self.top


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


class DropPath(nn.Module):
    """Leaves out a residual branch for whole samples in training, and scales up the others (Huang et al., 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """(N, ...) to the same shape."""
        if not self.training or self.probability == 0:
            return branch
        keep = 1 - self.probability
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        return branch * (torch.rand(shape, device=branch.device) < keep).to(branch.dtype) / keep

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3f}"


def add_drop_path(model: nn.Module, family: Family, probability: float) -> None:
    """Give each layer's branches a DropPath, from 0 in the first to ``probability`` in the last layer.

    VideoMAE, ViViT and VideoPrism of Transformers have none, so it is put behind the module that ends each branch;
    the others' own is replaced. The names of all parameters stay as they are.

    Raises UsageError if the family has no layers that vidray knows.
    """
    if probability == 0:
        return
    layers = [layer for stack in _STACKS.get(family.model_type, ()) for layer in _children(model, stack)]
    if not layers:
        raise UsageError(f"--drop-path: vidray does not know the layers of {family.model_type}; take 0")
    for index, layer in enumerate(layers):
        share = probability * index / max(1, len(layers) - 1)
        for end in _BRANCH_ENDS[family.model_type]:
            _append(layer, end, DropPath(share))


def _append(layer: nn.Module, path: str, drop: DropPath) -> None:
    *parents, name = path.split(".")
    parent = layer.get_submodule(".".join(parents))
    old = getattr(parent, name)
    new = drop if name == "drop_path" else nn.Sequential(old, drop)
    setattr(parent, name, new.train(layer.training))  # a new module would be in training mode inside a model in eval


def _children(model: nn.Module, path: str) -> list[nn.Module]:
    return list(model.get_submodule(path).children())


def freeze(model: nn.Module, family: Family, *, backbone: bool) -> None:
    """Stop what is not to be trained: parts that the forward does not use and, if asked, all but the head.

    A frozen backbone also stays in eval mode for good: ``train()`` would thaw batch-norm statistics and dropout.
    """
    head = family.head_key.rpartition(".")[0]
    for name, parameter in model.named_parameters():
        is_unused = name.startswith(_UNUSED.get(family.model_type, ()))
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
