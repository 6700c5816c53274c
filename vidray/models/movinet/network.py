"""A MoViNet without its classifier: frames in, one vector per video out. No Transformers here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vidray.models.movinet.layers import (
    Bottleneck,
    ConvNorm,
    SameConv3d,
    StreamBottleneck,
    accumulation_dtype,
    pointwise,
)
from vidray.models.movinet.state import LayerState, StreamState
from vidray.models.movinet.variants import LayerSpec


def _drop_path_rates(num_layers: int, last_rate: float) -> list[float]:
    """0 for the first layer, growing evenly towards ``last_rate``."""
    return [last_rate * index / num_layers for index in range(num_layers)]


class _Network(nn.Module):
    """What both networks share: stem, layers, projection.

    Args:
        drop_path_rate: of the last layer; less for those before it.
        layer_options: what a layer must know besides.
    """

    layer_class: ClassVar[type[Bottleneck]]

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        *,
        num_channels: int,
        project_channels: int,
        activation: str,
        drop_path_rate: float,
        **layer_options: Any,
    ) -> None:
        super().__init__()
        self.specs = tuple(layers)
        stem = SameConv3d(num_channels, layers[0].in_channels, kernel_pixels=3, stride=2)
        self.stem = ConvNorm(stem, activation=activation)
        self.project = pointwise(layers[-1].out_channels, project_channels, activation=activation)
        rates = _drop_path_rates(len(layers), drop_path_rate)
        self.blocks = nn.ModuleList(
            self.layer_class(spec, activation=activation, drop_path_rate=rate, **layer_options)
            for spec, rate in zip(layers, rates, strict=True)
        )

    @staticmethod
    def _as_volume(frames: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, C, T, H, W).

        On a CPU with the channels last in memory, which makes depthwise convolutions several times as fast there.
        """
        volume = frames.transpose(1, 2)
        return volume.contiguous(memory_format=torch.channels_last_3d) if frames.device.type == "cpu" else volume


class BaseNetwork(_Network):
    """Sees the whole clip at once: 3D convolutions, means over all frames."""

    layer_class = Bottleneck

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, project channels)."""
        x = self.stem(self._as_volume(frames))
        for block in self.blocks:
            x = block(x)
        return self.project(x).mean((2, 3, 4))


class StreamNetwork(_Network):
    """Sees frames in order, in chunks of any length: nothing in it looks ahead."""

    layer_class = StreamBottleneck

    def initial_state(self, *, batch_size: int, height: int, width: int) -> StreamState:
        """The state before the first frame of ``batch_size`` videos of ``height`` × ``width`` pixels."""
        like = self.stem.conv.weight
        sums = like.new_zeros(batch_size, 0, dtype=accumulation_dtype(like.dtype))
        layers = []
        height, width = -(-height // 2), -(-width // 2)  # the stem
        for spec in self.specs:
            height, width = -(-height // spec.stride), -(-width // spec.stride)
            buffer = like.new_zeros(batch_size, spec.expand_channels, spec.kernel_frames - 1, height, width)
            layer = LayerState(
                buffer=buffer if spec.kernel_frames > 1 else None,
                pooled_sum=sums.new_zeros(batch_size, spec.expand_channels),
            )
            layers.append(layer)
        return StreamState(
            num_frames=torch.zeros(batch_size, dtype=torch.int64, device=like.device),
            layers=tuple(layers),
            head_sum=sums.new_zeros(batch_size, self.project.conv.out_channels),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W), a whole video -> (B, project channels)."""
        return self.forward_stream(frames, None)[0]

    def forward_stream(self, frames: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """The mean vector (B, project channels) of all frames so far, and the state after ``frames``.

        Raises: ValueError if ``state`` is not one of videos of this batch and frame size.
        """
        batch_size, num_frames, _, height, width = frames.shape
        start = self.initial_state(batch_size=batch_size, height=height, width=width)
        state = start if state is None else _checked(state, start)
        x = self.stem(self._as_volume(frames))
        layers = []
        for block, before in zip(cast(Iterable[StreamBottleneck], self.blocks), state.layers, strict=True):
            x, after = block.forward_stream(x, before, state.num_frames)
            layers.append(after)
        head_sum = state.head_sum + self.project(x).mean((3, 4), dtype=state.head_sum.dtype).sum(2)
        count = state.num_frames + num_frames
        mean = head_sum / count.unsqueeze(1)
        return mean.to(x.dtype), StreamState(num_frames=count, layers=tuple(layers), head_sum=head_sum)


def _checked(state: StreamState, start: StreamState) -> StreamState:
    """``state``, if its tensors have the shapes of ``start``."""
    expected = {name: tuple(tensor.shape) for name, tensor in start.to_tensors().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.to_tensors().items()}
    if expected != got:
        name = next(name for name in [*expected, *got] if expected.get(name) != got.get(name))
        raise ValueError(
            f"the state is of other videos: {name} has shape {got.get(name)}, these frames need {expected.get(name)}; "
            "batch size and frame size must stay the same from chunk to chunk"
        )
    return state
