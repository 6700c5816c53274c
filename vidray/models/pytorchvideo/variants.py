"""The PyTorchVideo networks as a table. Needs neither torch nor pytorchvideo, so that the driver can read it.

Sources: parameters, frames × rate, side and accuracy from PyTorchVideo's model zoo (``docs/model_zoo.md``) and the
docstrings of ``pytorchvideo.models.hub`` 0.1.5; sides of X3D and MViT from their configurations in PySlowFast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vidray.errors import UsageError
from vidray.types import ViewConfig

Architecture = Literal["resnet", "slowfast", "x3d", "mvit"]

MEAN = (0.45, 0.45, 0.45)
STD = (0.225, 0.225, 0.225)

SLOWFAST_ALPHA = 4
"""The fast pathway of SlowFast sees every frame, the slow one each fourth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One published network and the input it was published for."""

    architecture: Architecture
    num_frames: int
    sampling_rate: int
    """Frames between two sampled ones at 30 frames per second."""
    train_size: int
    """Side of a training crop in pixels; the head pools over as much."""
    test_side: int
    """The shorter side of a frame for testing, in pixels."""
    test_size: int
    """Side of a crop for testing, in pixels."""
    num_parameters: int
    """With 400 classes."""
    top1: float
    """Accuracy on Kinetics-400 in percent."""
    weights_file: str
    """Name of the published state dict."""
    temporal_stride: int = 1
    """Frames that go in for each one that reaches the head."""

    @property
    def view(self) -> ViewConfig:
        """How the published network wants its views. 5 clips × 1 crop; the accuracy was measured with 10 × 3."""
        return ViewConfig(
            num_frames=self.num_frames,
            stride=self.sampling_rate,
            size=self.test_size,
            short_side=None if self.test_side == self.test_size else self.test_side,
            mean=MEAN,
            std=STD,
        )


def _variant(
    architecture: Architecture,
    frames_by_rate: tuple[int, int],
    sizes: tuple[int, int, int],
    num_parameters: int,
    top1: float,
    weights_file: str,
    *,
    temporal_stride: int = 1,
) -> Variant:
    """A row of the table below. ``sizes``: training crop, test side, test crop."""
    num_frames, sampling_rate = frames_by_rate
    train_size, test_side, test_size = sizes
    return Variant(
        architecture=architecture,
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        train_size=train_size,
        test_side=test_side,
        test_size=test_size,
        num_parameters=num_parameters,
        top1=top1,
        weights_file=weights_file,
        temporal_stride=temporal_stride,
    )


_WHOLE = (224, 256, 256)

VARIANTS: dict[str, Variant] = {
    "slow_r50": _variant("resnet", (8, 8), _WHOLE, 32_454_096, 74.58, "SLOW_8x8_R50.pyth"),
    "c2d_r50": _variant("resnet", (8, 8), _WHOLE, 24_327_632, 71.46, "C2D_8x8_R50.pyth", temporal_stride=2),
    "i3d_r50": _variant("resnet", (8, 8), _WHOLE, 28_043_472, 73.27, "I3D_8x8_R50.pyth", temporal_stride=2),
    "csn_r101": _variant("resnet", (32, 2), _WHOLE, 22_213_776, 77.00, "CSN_32x2_R101.pyth", temporal_stride=8),
    "r2plus1d_r50": _variant("resnet", (16, 4), _WHOLE, 28_107_600, 76.01, "R2PLUS1D_16x4_R50.pyth", temporal_stride=4),
    # 8x8 in the name counts the slow pathway; the fast one, which is what goes in, has 32 frames at rate 2.
    "slowfast_r50": _variant("slowfast", (32, 2), _WHOLE, 34_566_488, 76.94, "SLOWFAST_8x8_R50.pyth"),
    "slowfast_r101": _variant("slowfast", (32, 2), _WHOLE, 62_826_968, 77.90, "SLOWFAST_8x8_R101.pyth"),
    "x3d_xs": _variant("x3d", (4, 12), (160, 182, 182), 3_794_274, 69.12, "X3D_XS.pyth"),
    "x3d_s": _variant("x3d", (13, 6), (160, 182, 182), 3_794_274, 73.33, "X3D_S.pyth"),
    "x3d_m": _variant("x3d", (16, 5), _WHOLE, 3_794_274, 75.94, "X3D_M.pyth"),
    "x3d_l": _variant("x3d", (16, 5), (312, 356, 356), 6_153_384, 77.44, "X3D_L.pyth"),
    "mvit_base_16x4": _variant("mvit", (16, 4), (224, 256, 224), 36_610_672, 78.9, "MVIT_B_16x4.pyth"),
    "mvit_base_32x3": _variant("mvit", (32, 3), (224, 256, 224), 36_611_440, 80.3, "MVIT_B_32x3_f294077834.pyth"),
}
"""By the names of ``pytorchvideo.models.hub``."""


def find_variant(name: str) -> Variant:
    """The row of ``name``. Raises UsageError with the names that there are."""
    if name not in VARIANTS:
        raise UsageError(f"PyTorchVideo has no network {name!r} here; allowed are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def variants_of(architecture: Architecture) -> list[str]:
    """Names of the variants of an architecture, in the order of the table."""
    return [name for name, variant in VARIANTS.items() if variant.architecture == architecture]
