"""The families of video classifiers: one row each says what sets them apart, so that nobody else asks for a family.

Nothing here imports torch or transformers before a class is asked for: the driver reads this table too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vidray.errors import UsageError
from vidray.types import Span

InputRule = Literal["exact", "exact_frames", "exact_size", "at_least", "any"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What vidray must know about one kind of model beyond its own config.json."""

    model_type: str
    """``model_type`` in config.json."""
    module: str
    """Where its classes live. Importing this module alone spares the Auto classes and all processors."""
    model_class: str
    config_module: str
    config_class: str
    input_name: str = "pixel_values"
    """The forward's argument for the views, (N, T, C, H, W)."""
    logits_have_time: bool = False
    """True if the logits come as (N, 1, num_labels)."""
    num_frames_key: str = "num_frames"
    """Where config.json has the number of frames, with a dot before what is nested; ``default_num_frames`` is what
    Transformers builds without it."""
    default_num_frames: int
    size_key: str = "image_size"
    """Where config.json has the side of a frame in pixels; ``default_size`` is what Transformers builds without it."""
    default_size: int
    input_rule: InputRule
    """``exact``: the model takes only its own number of frames and size. ``exact_frames``: its own number of frames, of
    its own size or larger. ``exact_size``: any number of frames of its own size. ``at_least``: its own number of frames
    and size, or more. ``any``: any."""
    stride_key: str | None = None
    """Where config.json has the frames between two sampled ones, if it has."""
    span: Span = "stride"
    """What a clip spans where no ``vidray.json`` says it."""
    num_clips: int = 5
    """Clips per video where no ``vidray.json`` says it."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """How Transformers computes attention (``eager`` where it does not). Always named, since a config.json could name
    code from the Hub instead."""
    stream_key: str | None = None
    """Where config.json says whether the network keeps a state from chunk to chunk (``forward_stream``), if it does."""
    batches_side_by_side: bool = True
    """On CPUs, whether batches on a thread each are faster than one batch on all threads (see the Predictor)."""
    reads_labels: bool = False
    """True if it has no classes of its own, but compares a clip with texts (``--labels``)."""
    head_key: str = "classifier.weight"
    """The classifier's weights, (num_labels, features), in the weights file."""
    pooler: tuple[str, ...] = ()
    """Modules that are trained with the classifier and make its input of the backbone's tokens. Where a backbone comes
    without them, its feature is the mean of its tokens."""
    pretraining_tensors: tuple[str, ...] = ()
    """Beginnings of the names of tensors that come with a published backbone and say nothing of its features."""
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the backbone's forward that leave out what makes no features."""
    mean: tuple[float, float, float]
    """Of the published checkpoints; used only where neither the processor JSON says it nor the class that it names."""
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255
    offset: bool = False
    """True if the processor subtracts 1 after rescaling, before it normalises (ViViT)."""

    @property
    def head_name(self) -> str:
        """The classifier's module in the network: its last linear layer."""
        return self.head_key.rpartition(".")[0]

    def load_classes(self) -> tuple[Any, Any]:
        """(model class, config class). Slow the first time: imports torch and transformers."""
        model_class = getattr(importlib.import_module(self.module), self.model_class)
        config_class = getattr(importlib.import_module(self.config_module), self.config_class)
        return model_class, config_class


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _transformers(model_type: str, name: str, class_name: str, config_name: str, **values: Any) -> Family:
    package = f"transformers.models.{name}"
    return Family(
        model_type=model_type,
        module=f"{package}.modeling_{name}",
        model_class=class_name,
        config_module=f"{package}.configuration_{name}",
        config_class=config_name,
        **values,
    )


def _pytorchvideo(architecture: str, name: str, **values: Any) -> Family:
    return Family(
        **{
            "model_type": f"pytorchvideo_{architecture}",
            "module": "vidray.models.pytorchvideo.modeling",
            "model_class": f"PyTorchVideo{name}ForVideoClassification",
            "config_module": "vidray.models.pytorchvideo.configuration",
            "config_class": f"PyTorchVideo{name}Config",
            "default_size": 224,
            "input_rule": "at_least",
            "stride_key": "sampling_rate",
            "attention": "eager",
            "batches_side_by_side": False,
            "mean": (0.45, 0.45, 0.45),
            "std": (0.225, 0.225, 0.225),
            **values,
        }
    )


_ROWS = (
    _transformers(
        "videomae",
        "videomae",
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        default_num_frames=16,
        default_size=224,
        input_rule="exact",
        pooler=("fc_norm",),
        pretraining_tensors=("decoder.", "encoder_to_decoder.", "mask_token"),
        **_IMAGENET,
    ),
    _transformers(
        "timesformer",
        "timesformer",
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        default_num_frames=8,
        default_size=224,
        # Transformers resizes the position embeddings for other views, but divides the tokens by its own frames and
        # width: it fails, or attends over wrong ones.
        input_rule="exact",
        attention="eager",
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
    ),
    _transformers(
        "vivit",
        "vivit",
        "VivitForVideoClassification",
        "VivitConfig",
        default_num_frames=32,
        default_size=224,
        input_rule="exact",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        rescale_factor=1 / 127.5,
        offset=True,
        pretraining_tensors=("pooler.",),  # VivitModel has one, which no classifier uses
    ),
    _transformers(
        "vjepa2",
        "vjepa2",
        "VJEPA2ForVideoClassification",
        "VJEPA2Config",
        input_name="pixel_values_videos",
        num_frames_key="frames_per_clip",
        default_num_frames=64,
        size_key="crop_size",
        default_size=256,
        input_rule="exact_size",  # Transformers tells rows and frames of tokens apart by its own size
        pooler=("pooler",),
        backbone_options={"skip_predictor": True},
        **_IMAGENET,
    ),
    _transformers(
        "videoprism_vision_model",
        "videoprism",
        "VideoPrismForVideoClassification",
        "VideoPrismVisionConfig",
        input_name="pixel_values_videos",
        logits_have_time=True,
        default_num_frames=16,
        default_size=288,
        input_rule="exact",
        attention="eager",
        batches_side_by_side=False,
        pooler=("head", "head_layernorm"),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    _pytorchvideo("resnet", "ResNet", default_num_frames=8),
    _pytorchvideo("slowfast", "SlowFast", default_num_frames=32, input_rule="exact_frames"),
    _pytorchvideo("x3d", "X3D", default_num_frames=16),
    _pytorchvideo("mvit", "MViT", default_num_frames=16, input_rule="exact", batches_side_by_side=True),
    Family(
        model_type="movinet",
        module="vidray.models.movinet.modeling",
        model_class="MoViNetForVideoClassification",
        config_module="vidray.models.movinet.configuration",
        config_class="MoViNetConfig",
        default_num_frames=50,
        default_size=172,
        input_rule="any",
        span="full",
        num_clips=1,
        stream_key="stream",
        attention="eager",
        batches_side_by_side=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
)

FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}
"""Those with classes of their own."""

XCLIP = Family(
    model_type="xclip",
    module="vidray.models.xclip",
    model_class="XCLIPForVideoClassification",
    config_module="vidray.models.xclip",
    config_class="XCLIPConfig",
    num_frames_key="vision_config.num_frames",
    default_num_frames=8,
    size_key="vision_config.image_size",
    default_size=224,
    input_rule="exact",
    span="full",  # the paper takes its frames from all of a video
    num_clips=1,
    reads_labels=True,
    mean=_IMAGENET["mean"],
    std=_IMAGENET["std"],
)
"""Has no classes and is not trained: see ``reads_labels``."""

_KNOWN = FAMILIES | {XCLIP.model_type: XCLIP}


def require_stream(family: Family, config: Mapping[str, Any]) -> None:
    """Raise UsageError if the network that a config.json describes cannot be fed chunk by chunk."""
    if family.stream_key is not None and config.get(family.stream_key) is True:
        return
    able = ", ".join(f"{name} with {row.stream_key}: true" for name, row in FAMILIES.items() if row.stream_key)
    raise UsageError(
        f"--streaming needs a network that keeps a state between chunks of frames: {able} in config.json (`vidray "
        f"convert movinet --kind stream` makes one); this one is {family.model_type}"
        + (f" with {family.stream_key}: {config.get(family.stream_key, False)}" if family.stream_key else "")
    )


def find_family(model_type: object) -> Family:
    """The row of ``model_type``.

    Raises:
        UsageError: it is not a video classifier that vidray knows.
    """
    if isinstance(model_type, str) and model_type in _KNOWN:
        return _KNOWN[model_type]
    raise UsageError(
        f"config.json says model_type {model_type!r}, which is no video classifier that vidray knows; "
        f"allowed are {', '.join(sorted(_KNOWN))}"
    )
