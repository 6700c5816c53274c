"""The configs of PyTorchVideo's networks, as Transformers saves and loads them: one class per architecture."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from vidray.models.pytorchvideo.variants import SLOWFAST_ALPHA, VARIANTS, Architecture, variants_of

_WIDTHS: dict[Architecture, int] = {"resnet": 64, "slowfast": 64, "x3d": 12, "mvit": 96}


class PyTorchVideoConfig(PreTrainedConfig):
    """Which network to build. What is None comes from the table of variants. Not for itself: see its subclasses."""

    architecture: ClassVar[Architecture]

    variant: str = ""
    """A name of ``pytorchvideo.models.hub``, for instance ``slow_r50``."""
    num_channels: int = 3
    num_frames: int | None = None
    """Frames of a clip. The head pools over as many: a clip must have at least these (MViT, SlowFast: just these)."""
    image_size: int | None = None
    """Height and width in pixels. The head pools over as much: at least this (MViT: just this)."""
    sampling_rate: int | None = None
    """Frames between two sampled ones at 30 frames per second. The network does not see it."""
    width: int | None = None
    """Channels of the first layer, from which all others follow. Fewer than published make a small network."""
    dropout_rate: float | int = 0.5
    """Before the classifier."""
    initializer_range: float = 0.02
    """Standard deviation of a new classifier's weights."""

    def __post_init__(self, **kwargs: Any) -> None:
        allowed = variants_of(self.architecture)
        if self.variant not in allowed:
            raise ValueError(f"variant must be one of {', '.join(allowed)}, got {self.variant!r}")
        for name, value in self._defaults().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self._check()
        super().__post_init__(**kwargs)

    def _defaults(self) -> dict[str, int]:
        variant = VARIANTS[self.variant]
        return {
            "num_frames": variant.num_frames,
            "image_size": variant.train_size,
            "sampling_rate": variant.sampling_rate,
            "width": _WIDTHS[self.architecture],
        }

    def _check(self) -> None:
        """Raise ValueError if PyTorchVideo could not build the network."""
        num_frames, image_size = self.num_frames or 0, self.image_size or 0
        stride = VARIANTS[self.variant].temporal_stride
        if num_frames < stride or image_size < 32:
            raise ValueError(
                f"{self.variant} needs num_frames of at least {stride} and image_size of at least 32, "
                f"got {num_frames} and {image_size}"
            )
        if self.architecture == "slowfast" and (num_frames % SLOWFAST_ALPHA or (self.width or 0) % 8):
            raise ValueError(
                f"{self.variant} needs num_frames that {SLOWFAST_ALPHA} divides and a width that 8 divides, "
                f"got {num_frames} and {self.width}"
            )

    def to_diff_dict(self) -> dict[str, Any]:
        """Every field: what vidray reads in config.json shall be there, whatever the class's defaults become."""
        return self.to_dict()


class PyTorchVideoResNetConfig(PyTorchVideoConfig):
    """Slow, C2D, I3D, CSN and R(2+1)D: 3D ResNets with one pathway."""

    model_type = "pytorchvideo_resnet"
    architecture = "resnet"
    variant: str = "slow_r50"


class PyTorchVideoSlowFastConfig(PyTorchVideoConfig):
    """SlowFast: a slow pathway on every fourth frame, and a fast, thin one on all."""

    model_type = "pytorchvideo_slowfast"
    architecture = "slowfast"
    variant: str = "slowfast_r50"


class PyTorchVideoX3DConfig(PyTorchVideoConfig):
    """X3D: small networks with depthwise convolutions."""

    model_type = "pytorchvideo_x3d"
    architecture = "x3d"
    variant: str = "x3d_m"


class PyTorchVideoMViTConfig(PyTorchVideoConfig):
    """MViT: a transformer whose tokens grow fewer and wider. It takes its own frames and size alone."""

    model_type = "pytorchvideo_mvit"
    architecture = "mvit"
    variant: str = "mvit_base_16x4"
