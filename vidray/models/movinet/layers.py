"""The layers of a MoViNet (arXiv:2103.11511), as the published networks compute them. Shapes are (B, C, T, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import StochasticDepth

from vidray.models.movinet.state import LayerState
from vidray.models.movinet.variants import LayerSpec


class HardSigmoid(nn.Module):
    """relu6(x + 3) × 0.16667, as the original has it. The missing 1/300,000 of 1/6 adds up to 2e-4 in A0's logits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) * 0.16667


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "swish": nn.SiLU,
    "hard_swish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": HardSigmoid,
}

SE_RATIO = 0.25
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01


def same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after ``size`` pixels in TensorFlow's "same" padding: with a stride the end may get one more."""
    total = max(kernel - ((size - 1) % stride + 1), 0)
    return total // 2, total - total // 2


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, at least ``divisor`` and at least 0.9 of ``channels``."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or ``dtype`` if that is wider: sums over a whole video lose too much in half precision."""
    return torch.promote_types(dtype, torch.float32)


class SameConv3d(nn.Conv3d):
    """A convolution that pads as TensorFlow does: T stays T, and H becomes ceil(H / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_frames: int = 1,
        kernel_pixels: int = 1,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        kernel = (kernel_frames, kernel_pixels, kernel_pixels)
        super().__init__(in_channels, out_channels, kernel, stride=(1, stride, stride), groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frames, kernel, _ = self.kernel_size
        top, bottom = same_padding(x.shape[3], kernel=kernel, stride=self.stride[1])
        left, right = same_padding(x.shape[4], kernel=kernel, stride=self.stride[2])
        if (top, left) != (bottom, right):
            x = F.pad(x, (left, right, top, bottom))
            top = left = 0
        return F.conv3d(x, self.weight, self.bias, self.stride, (frames // 2, top, left), 1, self.groups)


class TemporalConv3d(nn.Conv3d):
    """A depthwise convolution over time alone. It pads nothing: (B, C, K - 1 + T, H, W) -> (B, C, T, H, W)."""

    def __init__(self, channels: int, *, kernel_frames: int) -> None:
        super().__init__(channels, channels, (kernel_frames, 1, 1), groups=channels, bias=False)


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation (or none)."""

    def __init__(self, conv: nn.Conv3d, *, activation: str | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm3d(conv.out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
        self.activation = ACTIVATIONS[activation]() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


def pointwise(in_channels: int, out_channels: int, *, activation: str | None) -> ConvNorm:
    """1×1×1 convolution, batch norm, activation."""
    return ConvNorm(SameConv3d(in_channels, out_channels), activation=activation)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate made from the mean of the whole clip."""

    def __init__(self, channels: int, *, activation: str, gating_activation: str, num_means: int = 1) -> None:
        super().__init__()
        hidden_channels = make_divisible(SE_RATIO * channels * num_means)
        self.reduce = nn.Linear(channels * num_means, hidden_channels)
        self.expand = nn.Linear(hidden_channels, channels)
        self.activation = ACTIVATIONS[activation]()
        self.gating_activation = ACTIVATIONS[gating_activation]()

    def gate(self, means: Tensor) -> Tensor:
        """Means (B, T or 1, C * num_means) -> what multiplies the input: (B, C, T or 1, 1, 1)."""
        gates = self.gating_activation(self.expand(self.activation(self.reduce(means))))
        return gates.transpose(1, 2)[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3, 4)).unsqueeze(1))


class StreamSqueezeExcitation(SqueezeExcitation):
    """Scales each channel of each frame by a gate made from the mean of all frames so far and that frame's mean."""

    def __init__(self, channels: int, *, activation: str, gating_activation: str, position_encoding: bool) -> None:
        super().__init__(channels, activation=activation, gating_activation=gating_activation, num_means=2)
        self.position_scale = nn.Parameter(torch.zeros(1)) if position_encoding else None

    def forward_stream(self, x: Tensor, pooled_sum: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled (B, C, T, H, W), and the sum (B, C) that includes these frames.

        ``pooled_sum`` (B, C) and ``num_frames`` (B,) are those before ``x``.
        """
        frame_means_BTC = x.mean((3, 4), dtype=pooled_sum.dtype).transpose(1, 2)
        sums_BTC = pooled_sum.unsqueeze(1) + frame_means_BTC.cumsum(1)
        positions_BT = num_frames.unsqueeze(1) + torch.arange(x.shape[2], device=x.device)
        means = torch.cat([sums_BTC / (positions_BT + 1).unsqueeze(2), frame_means_BTC], 2)
        if self.position_scale is not None:
            encoding = position_encoding(positions_BT, channels=means.shape[2], dtype=means.dtype)
            means = means + self.position_scale.to(means.dtype) * encoding
        return x * self.gate(means.to(x.dtype)), sums_BTC[:, -1].clone()  # a view would keep all T sums alive


def position_encoding(positions: Tensor, *, channels: int, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines, of the frame's number: (B, T) -> (B, T, channels). ``channels`` must be even."""
    exponents = torch.arange(0, channels, 2, device=positions.device, dtype=dtype) / channels
    radians = positions.to(dtype).unsqueeze(2) * 10_000.0**-exponents
    return torch.cat([radians.sin(), radians.cos()], 2)


class Skip(nn.Module):
    """The way around a layer whose output has another shape than its input."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.stride = spec.stride
        self.projection = pointwise(spec.in_channels, spec.out_channels, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self._pool(x) if self.stride > 1 else x)

    def _pool(self, x: Tensor) -> Tensor:
        """3×3 average with stride 2 of the pixels that exist.

        TensorFlow pads an odd size on both sides, which is PyTorch's padding of 1, and an even size only at the end,
        where the last window reaches over the edge, which is PyTorch's ``ceil_mode``.
        """
        # Frame by frame in 2D: avg_pool3d knows no bfloat16 on a CPU, and refuses frames smaller than its kernel.
        frames = x.transpose(1, 2).flatten(0, 1)
        padding = (frames.shape[2] % 2, frames.shape[3] % 2)
        pooled = F.avg_pool2d(frames, 3, 2, padding, ceil_mode=True, count_include_pad=False)
        return pooled.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def needs_skip(spec: LayerSpec) -> bool:
    """False where input and output can simply be added."""
    return spec.stride > 1 or spec.in_channels != spec.out_channels


class Bottleneck(nn.Module):
    """Expand, depthwise convolution, squeeze-excitation, project; times a learned scalar (ReZero), plus the input."""

    def __init__(self, spec: LayerSpec, *, activation: str, gating_activation: str, drop_path_rate: float) -> None:
        super().__init__()
        self.expand = pointwise(spec.in_channels, spec.expand_channels, activation=activation)
        self.depthwise = ConvNorm(self._depthwise_conv(spec), activation=activation)
        self.se = SqueezeExcitation(spec.expand_channels, activation=activation, gating_activation=gating_activation)
        self.project = pointwise(spec.expand_channels, spec.out_channels, activation=None)
        self.skip = Skip(spec) if needs_skip(spec) else nn.Identity()
        self.rezero = nn.Parameter(torch.zeros(1))
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")

    @staticmethod
    def _depthwise_conv(spec: LayerSpec, *, spatial_only: bool = False) -> SameConv3d:
        return SameConv3d(
            spec.expand_channels,
            spec.expand_channels,
            kernel_frames=1 if spatial_only else spec.kernel_frames,
            kernel_pixels=spec.kernel_pixels,
            stride=spec.stride,
            groups=spec.expand_channels,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._add_to_skip(x, self.se(self.depthwise(self.expand(x))))

    def _add_to_skip(self, x: Tensor, excited: Tensor) -> Tensor:
        """The output, given the input and what comes out of the squeeze-excitation."""
        return self.drop_path(self.rezero * self.project(excited)) + self.skip(x)


class StreamBottleneck(Bottleneck):
    """The causal layer: the depthwise convolution is split into space and time, and looks back in time only."""

    def __init__(
        self,
        spec: LayerSpec,
        *,
        activation: str,
        gating_activation: str,
        drop_path_rate: float,
        position_encoding: bool,
    ) -> None:
        super().__init__(
            spec, activation=activation, gating_activation=gating_activation, drop_path_rate=drop_path_rate
        )
        self.depthwise = ConvNorm(self._depthwise_conv(spec, spatial_only=True), activation=activation)
        self.temporal: ConvNorm | None = None
        if spec.kernel_frames > 1:
            conv = TemporalConv3d(spec.expand_channels, kernel_frames=spec.kernel_frames)
            self.temporal = ConvNorm(conv, activation=activation)
        self.se: StreamSqueezeExcitation = StreamSqueezeExcitation(
            spec.expand_channels,
            activation=activation,
            gating_activation=gating_activation,
            position_encoding=position_encoding,
        )

    def forward_stream(self, x: Tensor, state: LayerState, num_frames: Tensor) -> tuple[Tensor, LayerState]:
        """Output for the frames x (B, C, T, H, W), and the state after them. ``num_frames`` (B,) came before."""
        features = self.depthwise(self.expand(x))
        buffer = None
        if self.temporal is not None:
            assert state.buffer is not None
            remembered = torch.cat([state.buffer.to(features.dtype), features], 2)
            # A copy: a view would keep all frames of the chunk alive.
            buffer = remembered[:, :, -state.buffer.shape[2] :].clone()
            features = self.temporal(remembered)
        excited, pooled_sum = self.se.forward_stream(features, state.pooled_sum, num_frames)
        return self._add_to_skip(x, excited), LayerState(buffer=buffer, pooled_sum=pooled_sum)
