"""The config of a MoViNet, as Transformers saves and loads it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from vidray.models.movinet.layers import ACTIVATIONS
from vidray.models.movinet.variants import POSITION_ENCODED, VARIANTS, LayerSpec, parse_blocks


class MoViNetConfig(PreTrainedConfig):
    """Which MoViNet to build. What is None comes from the tables of ``variant``."""

    model_type = "movinet"

    variant: str = "a0"
    """``a0`` to ``a5``."""
    stream: bool = False
    """False: sees a whole clip at once. True: causal, can be fed chunk by chunk."""
    stem_channels: int | None = None
    blocks: str | None = None
    """The layers, in the notation of ``variants.parse_blocks``."""
    project_channels: int | None = None
    hidden_size: int = 2048
    """Width of the fully connected layer before the classifier."""
    activation: str | None = None
    gating_activation: str | None = None
    """Activation of the gates of the squeeze-excitation."""
    position_encoding: bool | None = None
    """Whether the squeeze-excitation of a stream network knows the number of the frame."""
    num_channels: int = 3
    num_frames: int | None = None
    """Frames of a clip. The network takes any number; this is what it was published for."""
    image_size: int | None = None
    """Height and width in pixels. The network takes any size."""
    fps: int | None = None
    """Frames per second of what it was published for."""
    dropout_rate: float | int = 0.2
    """Before the classifier."""
    drop_path_rate: float | int = 0.0
    """Share of videos for which the last layer is skipped in training; less for the layers before it."""
    initializer_range: float = 0.02
    """Standard deviation of a new classifier's weights."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {sorted(VARIANTS)}, got {self.variant!r}")
        for name, value in self._defaults().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name in ("activation", "gating_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ValueError(f"{name} must be one of {sorted(ACTIVATIONS)}, got {getattr(self, name)!r}")
        if self.position_encoding and not self.stream:
            raise ValueError("position_encoding needs stream=True: a base network has no frame numbers")
        self.layers()  # raises if blocks is not in the notation
        super().__post_init__(**kwargs)

    def _defaults(self) -> dict[str, Any]:
        variant = VARIANTS[self.variant]
        return {
            "stem_channels": variant.stem_channels,
            "blocks": variant.blocks,
            "project_channels": variant.project_channels,
            "activation": "hard_swish" if self.stream else "swish",
            "gating_activation": "hard_sigmoid" if self.stream else "sigmoid",
            "position_encoding": self.stream and self.variant in POSITION_ENCODED,
            "num_frames": variant.num_frames,
            "image_size": variant.image_size,
            "fps": variant.fps,
        }

    def layers(self) -> list[LayerSpec]:
        """The layers that ``blocks`` describes."""
        assert self.blocks is not None
        assert self.stem_channels is not None
        return parse_blocks(self.blocks, stem_channels=self.stem_channels)

    def to_diff_dict(self) -> dict[str, Any]:
        """Every field. Leaving out those that equal the class's defaults would lose a value of a0 set on another."""
        return self.to_dict()
