"""Where each family keeps its layers and residual branches: for layer-wise learning rates and drop path."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vidray.errors import UsageError
from vidray.models.families import Family

_STACKS: dict[str, tuple[str, ...]] = {
    "videomae": ("videomae.encoder.layer",),
    "timesformer": ("timesformer.encoder.layer",),
    "vivit": ("vivit.layers",),
    "vjepa2": ("vjepa2.encoder.layer",),
    "videoprism_vision_model": ("vision_model.spatial_layers", "vision_model.temporal_layers"),
    # Of a ResNet and its like the stem and each stage count as one layer.
    "pytorchvideo_resnet": ("network.blocks",),
    "pytorchvideo_slowfast": ("network.blocks",),
    "pytorchvideo_x3d": ("network.blocks",),
    "pytorchvideo_mvit": ("network.blocks",),
    "movinet": ("movinet.blocks",),
}
"""The modules whose children are the layers, from the input upwards."""

_BELOW: dict[str, tuple[str, ...]] = {
    "pytorchvideo_mvit": ("network.patch_embed.", "network.cls_positional_encoding."),
    "movinet": ("movinet.stem.",),
}
"""What lies below the layers, besides everything with ``embeddings`` in its name."""

_FUSION = "branch_fusion"

_BRANCH_ENDS: dict[str, tuple[str, ...]] = {
    "videomae": ("attention.output.dropout", "output.dropout"),
    "timesformer": ("drop_path",),
    "vivit": ("dropout",),
    "vjepa2": ("drop_path",),
    "videoprism_vision_model": ("dropout",),
    "pytorchvideo_resnet": (_FUSION,),
    "pytorchvideo_slowfast": (_FUSION,),
    "pytorchvideo_x3d": (_FUSION,),
    "pytorchvideo_mvit": ("drop_path",),
    "movinet": ("drop_path",),
}
"""The module of a layer (without parameters) that each residual branch goes through just before it is added; or the
function of a residual block that adds it."""


class LayerDepths:
    """How far up each parameter lies: 0 below the layers, i + 1 in layer i, ``top`` above (as in BEiT and VideoMAE).

    Args:
        required: refuse, with a UsageError, a family whose layers are not known.
    """

    def __init__(self, model: nn.Module, family: Family, *, required: bool) -> None:
        self._below = _BELOW.get(family.model_type, ())
        self._starts: dict[str, int] = {}
        num_layers = 0
        for stack in _STACKS.get(family.model_type, ()):
            self._starts[stack] = num_layers
            num_layers += len(_children(model, stack))
        if required and num_layers == 0:
            raise UsageError(
                f"--layer-decay: vidray does not know the layers of {family.model_type}, only those of "
                f"{', '.join(sorted(_STACKS))}; take 1"
            )
        self.top = num_layers + 1

    def of(self, name: str) -> int:
        """The depth of a parameter."""
        for stack, start in self._starts.items():
            if match := re.match(re.escape(stack) + r"\.(\d+)\.", name):
                return start + int(match[1]) + 1
        return 0 if "embeddings" in name or name.startswith(self._below) else self.top


def add_drop_path(model: nn.Module, family: Family, probability: float) -> None:
    """Give each layer's branches a StochasticDepth, with 0 in the first layer to ``probability`` in the last one.

    VideoMAE, ViViT and VideoPrism of Transformers and PyTorchVideo's networks of convolutions have none, so it is put
    behind what ends each branch; the others' own is replaced. The names of all parameters stay as they are.

    Raises UsageError if the family has no layers that vidray knows.
    """
    if probability == 0:
        return
    layers = _residual_layers(model, family)
    if not layers:
        raise UsageError(
            f"--drop-path: vidray does not know the layers of {family.model_type}, only those of "
            f"{', '.join(sorted(_BRANCH_ENDS))}; take 0"
        )
    for index, layer in enumerate(layers):
        share = probability * index / max(1, len(layers) - 1)
        for end in _BRANCH_ENDS[family.model_type]:
            _insert_drop_path(layer, end, StochasticDepth(share, mode="row"))


def _residual_layers(model: nn.Module, family: Family) -> list[nn.Module]:
    """The modules that hold branches, from the input upwards: the layers, or the blocks in a ResNet's stages."""
    if _BRANCH_ENDS.get(family.model_type) == (_FUSION,):
        return [module for module in model.modules() if hasattr(module, _FUSION)]
    return [layer for stack in _STACKS.get(family.model_type, ()) for layer in _children(model, stack)]


def _insert_drop_path(layer: nn.Module, path: str, drop: StochasticDepth) -> None:
    *parents, name = path.split(".")
    parent = layer.get_submodule(".".join(parents))
    old = getattr(parent, name)
    new: nn.Module
    if name == "drop_path":
        new = drop
    elif name == _FUSION:
        new = _FusionWithDropPath(old, drop)
    else:
        new = nn.Sequential(old, drop)
    setattr(parent, name, new.train(layer.training))  # a new module would be in training mode inside a model in eval


class _FusionWithDropPath(nn.Module):
    """What adds a residual block's branch to its shortcut, with a drop path on the branch."""

    def __init__(self, fuse: Callable[[Tensor, Tensor], Tensor], drop: StochasticDepth) -> None:
        super().__init__()
        self._fuse, self.drop = fuse, drop

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        return self._fuse(shortcut, self.drop(branch))


def _children(model: nn.Module, path: str) -> list[nn.Module]:
    """The layers of a stack. What has no parameters (a pool above the stages) is none."""
    return [child for child in model.get_submodule(path).children() if any(True for _ in child.parameters())]
