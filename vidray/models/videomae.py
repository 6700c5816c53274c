"""VideoMAE's classifier, for scoring alone.

The arithmetic is that of Transformers' ``VideoMAEForVideoClassification``; what is spared is its import, which takes 3
of the 6 seconds in which a predictor starts. Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners
for Self-Supervised Video Pre-Training", 2022.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vidray.models.attention import attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What of config.json decides on the network. The defaults are those of Transformers."""

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qv_bias: bool = True
    use_mean_pooling: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """None where this module does not know what the config asks for."""
        values = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        expected = {name: type(field.default) for name, field in cls.__dataclass_fields__.items()}
        if "qkv_bias" in config or any(not isinstance(value, expected[name]) for name, value in values.items()):
            return None
        sizes = cls(**values)
        return sizes if sizes.hidden_act == "gelu" else None

    @property
    def num_patches(self) -> int:
        """Tokens of a clip."""
        return (self.image_size // self.patch_size) ** 2 * (self.num_frames // self.tubelet_size)


class Output(NamedTuple):
    """What ``forward`` gives, as the models of Transformers do."""

    logits: Tensor
    """(N, num_labels)."""


class VideoMAEScorer(nn.Module):
    """Pixels to logits."""

    def __init__(self, sizes: Sizes, *, num_labels: int) -> None:
        super().__init__()
        kernel = (sizes.tubelet_size, sizes.patch_size, sizes.patch_size)
        self.patches = nn.Conv3d(sizes.num_channels, sizes.hidden_size, kernel, stride=kernel)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.num_hidden_layers))
        self.pools = sizes.use_mean_pooling
        eps = 1e-5 if sizes.use_mean_pooling else sizes.layer_norm_eps
        self.norm = nn.LayerNorm(sizes.hidden_size, eps=eps)
        self.classifier = nn.Linear(sizes.hidden_size, num_labels)
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(sizes.num_patches, sizes.hidden_size), persistent=False)

    def forward(self, pixel_values: Tensor) -> Output:
        """(N, T, C, H, W), of the config's T, H and W."""
        patches = self.patches(pixel_values.transpose(1, 2))
        tokens_NLD = patches.flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens_NLD = layer(tokens_NLD)
        features = self.norm(tokens_NLD.mean(1)) if self.pools else self.norm(tokens_NLD)[:, 0]
        return Output(logits=self.classifier(features))


class _Layer(nn.Module):
    """Attention, then two linear maps, each on normalised tokens and added to what came in."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.num_heads = sizes.num_attention_heads
        self.norm_before = nn.LayerNorm(width, eps=sizes.layer_norm_eps)
        self.query = nn.Linear(width, width, bias=sizes.qv_bias)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=sizes.qv_bias)
        self.mix = nn.Linear(width, width)
        self.norm_after = nn.LayerNorm(width, eps=sizes.layer_norm_eps)
        self.expand = nn.Linear(width, sizes.intermediate_size)
        self.shrink = nn.Linear(sizes.intermediate_size, width)

    def forward(self, tokens_NLD: Tensor) -> Tensor:
        tokens_NLD = tokens_NLD + self.mix(self._attend(self.norm_before(tokens_NLD)))
        return tokens_NLD + self.shrink(F.gelu(self.expand(self.norm_after(tokens_NLD))))

    def _attend(self, tokens_NLD: Tensor) -> Tensor:
        query, key, value = (
            project(tokens_NLD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        return attention(query, key, value).transpose(1, 2).flatten(2)


def sinusoids(num_positions: int, width: int) -> Tensor:
    """(num_positions, width) float32: sines of each position in the even columns, cosines in the odd (Vaswani et al.,
    2017)."""
    columns = np.arange(width)
    angles = np.arange(num_positions)[:, None] / np.power(10000, 2 * (columns // 2) / width)
    return torch.from_numpy(np.where(columns % 2 == 0, np.sin(angles), np.cos(angles))).float()


_LAYER_NAMES = {
    "layernorm_before": "norm_before",
    "attention.attention.query": "query",
    "attention.attention.key": "key",
    "attention.attention.value": "value",
    "attention.output.dense": "mix",
    "layernorm_after": "norm_after",
    "intermediate.dense": "expand",
    "output.dense": "shrink",
}
_LAYER = re.compile(r"videomae\.encoder\.layer\.(\d+)\.(.+)")


def _own_name(name: str, sizes: Sizes) -> str:
    """What a tensor of the weights file is called here; unchanged if it has no place."""
    # The published files' names; Transformers has others in memory, and turns them back when it saves.
    name = name.replace(".attention.q_bias", ".attention.query.bias").replace(
        ".attention.v_bias", ".attention.value.bias"
    )
    module, _, kind = name.rpartition(".")
    if match := _LAYER.fullmatch(module):
        return f"layers.{match[1]}.{_LAYER_NAMES.get(match[2], match[2])}.{kind}"
    names = {
        "videomae.embeddings.patch_embeddings.projection": "patches",
        "fc_norm" if sizes.use_mean_pooling else "videomae.layernorm": "norm",
    }
    return f"{names.get(module, module)}.{kind}"


def load_scorer(
    config: Mapping[str, Any], *, files: list[Path], num_labels: int, dtype: torch.dtype
) -> VideoMAEScorer | None:
    """The network with the weights in ``files`` (safetensors), in eval mode, on the CPU.

    None unless every tensor has exactly its place: an older checkpoint's names, or what is missing, are the business of
    Transformers' own loading, and of its errors.
    """
    from safetensors.torch import load_file

    sizes = Sizes.from_config(config)
    if sizes is None:
        return None
    with torch.device("meta"):  # no time for random weights
        network = VideoMAEScorer(sizes, num_labels=num_labels)
    tensors = [(_own_name(name, sizes), tensor) for file in files for name, tensor in load_file(file).items()]
    shapes = [(name, tensor.shape) for name, tensor in network.state_dict().items()]
    if sorted((name, tensor.shape) for name, tensor in tensors) != sorted(shapes):
        return None
    # Copied out of the mapped file, where they begin at any address.
    network.load_state_dict({name: tensor.clone() for name, tensor in tensors}, assign=True)
    return network.to(dtype).eval()
