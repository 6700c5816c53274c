"""The networks that ``vidray new`` can build, by family and variant: config and views. Needs no torch.

Sources: VideoMAE (arXiv:2203.12602), TimeSformer (arXiv:2102.05095) and the configurations of its repository, ViViT
(arXiv:2103.15691), V-JEPA 2 (arXiv:2506.09985), VideoPrism (arXiv:2402.13217), and the configs that Transformers' own
conversions write; for the others their tables of variants.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vidray.errors import UsageError
from vidray.models.families import FAMILIES
from vidray.models.movinet.variants import VARIANTS as MOVINETS
from vidray.models.movinet.variants import movinet_view
from vidray.models.processors import read_view
from vidray.models.pytorchvideo.variants import VARIANTS as PYTORCHVIDEO
from vidray.types import ViewConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One network, without weights and labels."""

    model_type: str
    """A row of ``vidray.models.families``."""
    config: dict[str, Any]
    """What its config.json has besides the defaults of its class."""
    view: ViewConfig
    """How the published network wants its views."""


def find_network(family: str, variant: str) -> tuple[str, Network]:
    """(its full name, such as ``MoViNet a0-base``; the network). Case and punctuation do not count.

    Args:
        family: a name of ``NETWORKS``.
        variant: a name of the family's variants, also without what the family's name says already (``m`` for ``x3d_m``)
            or without its end, where that is of the first of several (``a0`` for ``a0-base``).

    Raises:
        UsageError: there is no such family or variant; it names those that there are.
    """
    families = {_plain(name): name for name in NETWORKS}
    if _plain(family) not in families:
        raise UsageError(f"FAMILY: got {family!r}, allowed are {', '.join(NETWORKS)}")
    family = families[_plain(family)]
    name = _find(variant, NETWORKS[family], family)
    if name is None:
        raise UsageError(f"VARIANT: got {variant!r}, allowed for {family} are {', '.join(NETWORKS[family])}")
    return f"{family} {name}", NETWORKS[family][name]


def _find(variant: str, names: Iterable[str], family: str) -> str | None:
    wanted = _plain(variant)
    for spelling in (lambda name: name, lambda name: name.partition("-")[0]):
        for name in names:
            if _plain(spelling(name)) in (wanted, _plain(family) + wanted):
                return name
    return None


def _plain(name: str) -> str:
    """``V-JEPA 2`` → ``vjepa2``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _transformers(model_type: str, stride: int, processor: str = "", **config: Any) -> Network:
    """A network of Transformers. ``processor``: the class whose frames are larger than the crop, where there is one."""
    family = FAMILIES[model_type]
    values = {"video_processor_type": processor, "crop_size": config.get(family.size_key, family.default_size)}
    view = read_view(values if processor else {}, config=config, family=family)
    return Network(model_type=model_type, config=config, view=dataclasses.replace(view, stride=stride))


def _videomae(hidden_size: int, num_hidden_layers: int, num_attention_heads: int) -> Network:
    return _transformers(
        "videomae",
        4,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=4 * hidden_size,
    )


def _vjepa2(
    hidden_size: int, num_hidden_layers: int, num_attention_heads: int, frames_per_clip: int, crop_size: int
) -> Network:
    return _transformers(
        "vjepa2",
        4,
        "VJEPA2VideoProcessor",
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        mlp_ratio=48 / 11 if hidden_size == 1408 else 4.0,
        frames_per_clip=frames_per_clip,
        crop_size=crop_size,
    )


def _movinet(name: str, *, stream: bool) -> Network:
    config = {"variant": name, "stream": stream}
    return Network(model_type="movinet", config=config, view=movinet_view(MOVINETS[name]))


_PYTORCHVIDEO = {
    name: Network(model_type=f"pytorchvideo_{row.architecture}", config={"variant": name}, view=row.view)
    for name, row in PYTORCHVIDEO.items()
}
_ARCHITECTURES = ("Slow", "C2D", "I3D", "CSN", "R2plus1D", "SlowFast", "X3D", "MViT")

NETWORKS: dict[str, dict[str, Network]] = {
    "VideoMAE": {
        "small": _videomae(384, 12, 6),
        "base": _videomae(768, 12, 12),
        "large": _videomae(1024, 24, 16),
        "huge": _videomae(1280, 32, 16),
    },
    "TimeSformer": {
        "base": _transformers("timesformer", 32),
        "hr": _transformers("timesformer", 16, num_frames=16, image_size=448),
        "l": _transformers("timesformer", 4, num_frames=96),
    },
    "ViViT": {"b-16x2": _transformers("vivit", 2, "VivitImageProcessor")},
    "V-JEPA 2": {
        "vitl-fpc16-256": _vjepa2(1024, 24, 16, 16, 256),
        "vitl-fpc64-256": _vjepa2(1024, 24, 16, 64, 256),
        "vith-fpc64-256": _vjepa2(1280, 32, 16, 64, 256),
        "vitg-fpc64-256": _vjepa2(1408, 40, 22, 64, 256),
        "vitg-fpc64-384": _vjepa2(1408, 40, 22, 64, 384),
    },
    "VideoPrism": {
        "base-f16r288": _transformers("videoprism_vision_model", 4),
        "large-f8r288": _transformers(
            "videoprism_vision_model",
            4,
            num_frames=8,
            hidden_size=1024,
            num_attention_heads=16,
            intermediate_size=4096,
            num_spatial_layers=24,
        ),
    },
    "PyTorchVideo": _PYTORCHVIDEO,
    **{
        family: {name: row for name, row in _PYTORCHVIDEO.items() if name.startswith(f"{family.lower()}_")}
        for family in _ARCHITECTURES
    },
    "MoViNet": {
        f"{name}-{'stream' if stream else 'base'}": _movinet(name, stream=stream)
        for stream in (False, True)
        for name in MOVINETS
    },
}
"""By the names of ``vidray models``, as published; PyTorchVideo's also by their architecture. Of several with the same
beginning the first is the usual one."""
