"""Builds PyTorchVideo's networks without their classifiers.

``pytorchvideo`` is imported when a network is built: with torchvision and fvcore behind it, that takes seconds.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vidray.errors import UsageError
from vidray.models.families import find_family
from vidray.models.processors import refuse_input
from vidray.models.pytorchvideo.configuration import PyTorchVideoConfig
from vidray.models.pytorchvideo.variants import SLOWFAST_ALPHA, VARIANTS


def build_network(config: PyTorchVideoConfig) -> tuple[nn.Module, int]:
    """(network, number of features). The network takes (B, C, T, H, W), SlowFast a list of two; it gives (B, features).

    The classifier is taken out of the head. It is linear, and what follows it is a mean (softmax left out), so a
    classifier behind the network gives the logits of one inside it.
    """
    device = torch.get_default_device()
    # MViT reads numbers off tensors (`.item()`), which the meta device has none of; Transformers loads models on it.
    with torch.device("cpu" if config.architecture == "mvit" else device):
        network = _build(config)
    head = find_head(network)
    num_features = head.proj.in_features
    head.proj = nn.Identity()
    if head.dropout is not None:
        head.dropout.p = float(config.dropout_rate)
    _set_pools(network, config)
    _pool_in_float32(network)
    return network.to(device), num_features


class AvgPool3d(nn.AvgPool3d):
    """The mean, computed in float32: on CPUs PyTorch has none in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def _pool_in_float32(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, pool in list(parent.named_children()):
            if isinstance(pool, nn.AvgPool3d):
                setattr(parent, name, AvgPool3d(pool.kernel_size, pool.stride, pool.padding))


def find_head(network: nn.Module) -> Any:
    """The last module, which pools the features."""
    return network.get_submodule("head") if hasattr(network, "head") else network.get_submodule("blocks")[-1]  # type: ignore[index]


def pathways(pixels: Tensor) -> list[Tensor]:
    """SlowFast's [slow, fast] of a clip (B, C, T, H, W): T / 4 frames spread from the first to the last, and all T.

    A new list each time, since the network overwrites the one it is given.
    """
    num_frames = pixels.shape[2]
    indices = torch.linspace(0, num_frames - 1, num_frames // SLOWFAST_ALPHA, device=pixels.device).long()
    return [pixels.index_select(2, indices), pixels]


def check_input(shape: tuple[int, ...], config: PyTorchVideoConfig) -> None:
    """Raise UsageError if the network cannot take ``pixel_values`` of this shape."""
    if len(shape) != 5 or shape[0] < 1 or shape[2] != config.num_channels:
        expected = f"(batch, frames, {config.num_channels}, height, width)"
        raise UsageError(f"{config.variant} takes {expected}, got {shape}")
    rule = find_family(config.model_type).input_rule
    num_frames, size = config.num_frames or 0, config.image_size or 0
    if allowed := refuse_input(rule, shape[1], (shape[3], shape[4]), num_frames, size):
        raise UsageError(f"{config.variant} takes {allowed}, got (batch, frames, channels, height, width) {shape}")


def _build(config: PyTorchVideoConfig) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorchVideo scripts its activations with torch.jit
        from pytorchvideo.models import hub
    return getattr(hub, config.variant)(**_arguments(config))


def _arguments(config: PyTorchVideoConfig) -> dict[str, Any]:
    """Of the function in PyTorchVideo's hub, which knows the rest."""
    channels, width = config.num_channels, config.width or 0
    if config.architecture == "mvit":
        return {
            "input_channels": channels,
            "patch_embed_dim": width,
            "temporal_size": config.num_frames,
            "spatial_size": config.image_size,
        }
    if config.architecture == "slowfast":
        return {"input_channels": (channels, channels), "stem_dim_outs": (width, width // 8)}
    # The default of X3D and R(2+1)D is a softmax, also in training.
    width_name = "stem_dim_in" if config.architecture == "x3d" else "stem_dim_out"
    return {"input_channel": channels, width_name: width, "head_activation": None}


def _set_pools(network: nn.Module, config: PyTorchVideoConfig) -> None:
    """Let the head pool over what reaches it from a clip of the config's frames and size.

    For the published frames and size that is what PyTorchVideo has: a test compares them.
    """
    if config.architecture == "mvit":
        return
    num_frames, size = config.num_frames or 0, config.image_size or 0
    frames, side = num_frames // VARIANTS[config.variant].temporal_stride, -(-size // 32)
    if config.architecture == "slowfast":
        slow, fast = network.get_submodule("blocks.5.pool").children()
        slow.kernel_size, fast.kernel_size = (frames // SLOWFAST_ALPHA, side, side), (frames, side, side)  # type: ignore[assignment]
    else:
        pool = find_head(network).pool
        (pool.pool if config.architecture == "x3d" else pool).kernel_size = (frames, side, side)
