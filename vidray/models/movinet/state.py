"""What a stream network remembers between chunks of frames: plain tensors, passed in and handed back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerState:
    """The memory of one layer. B: videos, C: its expanded channels, H and W: its frames after striding."""

    buffer: Tensor | None
    """(B, C, kernel frames - 1, H, W): the last frames before the temporal convolution; None where there is none."""
    pooled_sum: Tensor
    """(B, C), at least float32: sum over all frames so far of their spatial means, for the squeeze-excitation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamState:
    """The memory of a whole network for a batch of videos. All zeros: before the first frame.

    Its size does not depend on how many frames were seen. Every tensor has the videos in its first dimension, and each
    video has a frame count of its own, so videos that are at different frames can share a batch.
    """

    num_frames: Tensor
    """(B,) int64: frames seen so far."""
    layers: tuple[LayerState, ...]
    head_sum: Tensor
    """(B, C), at least float32: sum over all frames so far of their spatial means, for the classifier."""

    @property
    def batch_size(self) -> int:
        """Number of videos, B."""
        return self.num_frames.shape[0]

    @classmethod
    def cat(cls, states: Sequence[StreamState]) -> StreamState:
        """One batch of the videos of several. All must be of one network, frame size, device and dtype."""
        flat = [state.to_tensors() for state in states]
        return cls.from_tensors({name: torch.cat([tensors[name] for tensors in flat]) for name in flat[0]})

    def split(self) -> list[StreamState]:
        """A state for each video, with a batch size of 1."""
        videos = {name: tensor.split(1) for name, tensor in self.to_tensors().items()}
        return [self.from_tensors({name: parts[i] for name, parts in videos.items()}) for i in range(self.batch_size)]

    def reset(self, videos: Tensor | None = None) -> StreamState:
        """The state before the first frame, of all videos, or of those where ``videos``, (B,) bool, is True."""
        if videos is None:
            return self.map(torch.zeros_like)
        if videos.shape != (self.batch_size,) or videos.dtype != torch.bool:
            raise ValueError(f"videos must be ({self.batch_size},) bool, got {tuple(videos.shape)} {videos.dtype}")
        return self.map(lambda tensor: tensor.masked_fill(videos.view(-1, *[1] * (tensor.ndim - 1)), 0))

    def detach(self) -> StreamState:
        """The same values, without the graph that made them: training over chunks ends its gradient here."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> StreamState:
        """The same state on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> StreamState:
        """A state in which each tensor is what ``function`` makes of it."""
        return self.from_tensors({name: function(tensor) for name, tensor in self.to_tensors().items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dict of tensors, such as safetensors can store."""
        tensors = {"num_frames": self.num_frames, "head_sum": self.head_sum}
        for index, layer in enumerate(self.layers):
            tensors[f"layers.{index}.pooled_sum"] = layer.pooled_sum
            if layer.buffer is not None:
                tensors[f"layers.{index}.buffer"] = layer.buffer
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> StreamState:
        """The state that ``to_tensors`` gave.

        Raises: ValueError where a tensor is missing or unknown.
        """
        num_layers = sum(name.endswith(".pooled_sum") for name in tensors)
        sums = [f"layers.{index}.pooled_sum" for index in range(num_layers)]
        buffers = [f"layers.{index}.buffer" for index in range(num_layers)]
        required = {"num_frames", "head_sum", *sums}
        missing, unknown = required - set(tensors), set(tensors) - required - set(buffers)
        if missing or unknown:
            raise ValueError(f"not the tensors of a stream state: missing {sorted(missing)}, unknown {sorted(unknown)}")
        layers = [
            LayerState(buffer=tensors.get(buffer), pooled_sum=tensors[pooled_sum])
            for buffer, pooled_sum in zip(buffers, sums, strict=True)
        ]
        return cls(num_frames=tensors["num_frames"], layers=tuple(layers), head_sum=tensors["head_sum"])
