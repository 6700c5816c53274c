"""The six MoViNets as tables, and the notation in which their blocks are written.

Source: Kondratyuk et al., "MoViNets: Mobile Video Networks for Efficient Video Recognition" (arXiv:2103.11511), with
the widths that its published networks have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vidray.types import REFERENCE_FPS, ViewConfig

KERNELS = {"a": (1, 3), "b": (1, 5), "c": (3, 3), "d": (5, 3)}
"""Letter in the block notation -> (frames, pixels) of the depthwise kernel."""

STRIDED_GROUPS = (0, 1, 2, 4)
"""Groups, counted from 0, whose first layer halves height and width. Nothing ever strides in time."""

_LAYER = re.compile(r"(\d+)([abcd])(?:\*(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """One inverted bottleneck."""

    in_channels: int
    expand_channels: int
    """Channels of the depthwise convolution inside."""
    out_channels: int
    kernel_frames: int
    """Frames that the depthwise convolution spans."""
    kernel_pixels: int
    """Height and width that it spans."""
    stride: int
    """Spatial stride."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """The size of one MoViNet and the input for which it was published."""

    stem_channels: int
    project_channels: int
    """Channels of the last 1×1×1 convolution, before pooling."""
    blocks: str
    """Groups of layers, see ``parse_blocks``."""
    image_size: int
    """Height and width of a frame in pixels."""
    num_frames: int
    """Frames of one clip: 10 seconds at ``fps``."""
    fps: int


def parse_blocks(blocks: str, *, stem_channels: int) -> list[LayerSpec]:
    """The layers that a table row describes.

    Groups are divided by ``|``; a group is ``channels:layers``; a layer is its expanded width and the letter of its
    kernel (``KERNELS``); ``*3`` repeats it. ``8:24b|32:80c*3`` is a layer of 8 channels that expands to 24 and has a
    1×5×5 kernel, then three layers of 32 channels that expand to 80 and have 3×3×3 kernels.

    Raises: ValueError where the text is not of this form.
    """
    layers = []
    in_channels = stem_channels
    for group_index, group in enumerate(blocks.split("|")):
        out_channels, expansions = _parse_group(group)
        for layer_index, (expand_channels, letter) in enumerate(expansions):
            kernel_frames, kernel_pixels = KERNELS[letter]
            layer = LayerSpec(
                in_channels=in_channels,
                expand_channels=expand_channels,
                out_channels=out_channels,
                kernel_frames=kernel_frames,
                kernel_pixels=kernel_pixels,
                stride=2 if layer_index == 0 and group_index in STRIDED_GROUPS else 1,
            )
            layers.append(layer)
            in_channels = out_channels
    return layers


def _parse_group(group: str) -> tuple[int, list[tuple[int, str]]]:
    """``32:80c*3`` -> 32, [(80, "c"), (80, "c"), (80, "c")]."""
    channels, colon, layers = group.partition(":")
    matches = [_LAYER.fullmatch(layer) for layer in layers.split()]
    if not (colon and channels.isdecimal() and matches and all(matches)):
        raise ValueError(f"a group of layers is written like '32:80c*3 96d', kernels {sorted(KERNELS)}; got {group!r}")
    expansions = []
    for match in matches:
        assert match
        expansions += [(int(match[1]), match[2])] * int(match[3] or 1)
    return int(channels), expansions


def _variant(stem_channels: int, project_channels: int, input_shape: tuple[int, int, int], *groups: str) -> Variant:
    """A row of the table below. ``input_shape``: pixels, frames, frames per second."""
    image_size, num_frames, fps = input_shape
    return Variant(
        stem_channels=stem_channels,
        project_channels=project_channels,
        blocks="|".join(groups),
        image_size=image_size,
        num_frames=num_frames,
        fps=fps,
    )


VARIANTS: dict[str, Variant] = {
    "a0": _variant(
        8,
        480,
        (172, 50, 5),
        "8:24b",
        "32:80c*3",
        "56:184d 112c 184c",
        "56:184d 184c*3",
        "104:384d 280b 280b 344b",
    ),
    "a1": _variant(
        16,
        600,
        (172, 50, 5),
        "16:40b 40c",
        "40:96c 120c 96c 96c",
        "64:216d 128c 216c 168c 216c",
        "64:216d 216c*2 128c 128b 216c",
        "136:456d 360b*3 456b 456c 544a",
    ),
    "a2": _variant(
        16,
        640,
        (224, 50, 5),
        "16:40b 40c 64c",
        "40:96c 120c 96c 96c 120c",
        "72:240d 160c 240c 192c 240c",
        "72:240d 240c*3 144b 240c",
        "144:480d 384b*2 480b*2 480c 576a",
    ),
    "a3": _variant(
        16,
        744,
        (256, 120, 12),
        "16:40b 40c 64c 40c",
        "48:112c 144c 112c 112b 144c 144c",
        "80:240d 152c 240c 192c 240c",
        "88:264d 264c*3 160b 264c*3",
        "168:560d 448b*2 560b*2 560c 448b*2 560c 672a",
    ),
    "a4": _variant(
        24,
        856,
        (290, 80, 8),
        "24:64b 64c 96c 64c 96c 64c",
        "56:168c*2 136c*2 168c*3 136b 136c",
        "96:320d 160c 320c 192c 320c 160c 320c 256c 320c",
        "96:320d 320c*3 192b 320c*2 192c 320c*2",
        "192:640d 512b*2 640b*2 640c 512b*2 640b 768b 640b 640c 768c",
    ),
    "a5": _variant(
        24,
        992,
        (320, 120, 12),
        "24:64b*2 96c 64c 96c 64c",
        "64:192d 152c*3 192c*3 152c*2 192c*2",
        "112:376d 224c 376c*2 296c 376c 224c 376c*2 296c 376c*3",
        "120:376d 376c*3 224b 376c*2 224c 376c*3",
        "224:744d 744c 600b*2 744b*2 744c 896b 600b*2 896b 744b 744c 896b 600b*2 744b 744c",
    ),
}
"""A0 to A5. The base and the stream network of a variant have the same table."""


def movinet_view(config: Any) -> ViewConfig:
    """How a published MoViNet wants its views: one, of the whole video; pixels in [0, 1].

    ``config``: a ``Variant`` or a ``MoViNetConfig``.
    """
    return ViewConfig(
        num_frames=config.num_frames,
        size=config.image_size,
        stride=round(REFERENCE_FPS / config.fps),
        span="full",
        num_clips=1,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


POSITION_ENCODED = ("a3", "a4", "a5")
"""Variants whose stream network tells its squeeze-excitation which frame it is."""
