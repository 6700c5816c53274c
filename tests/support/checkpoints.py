"""Tiny checkpoints for tests, made offline from a small config and a fixed seed, in the layout of published ones."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vidray.types import ViewConfig

ProcessorStyle = Literal["old", "new", "nested", "none"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UCF_LABELS = ("ApplyEyeMakeup", "Archery", "BasketballDunk", "Biking", "Drumming", "PlayingGuitar", "YoYo")


def make_videomae(
    folder: str | Path,
    *,
    labels: Sequence[str] = UCF_LABELS,
    num_frames: int = 8,
    size: int = 32,
    patch_size: int = 8,
    hidden_size: int = 32,
    num_layers: int = 2,
    seed: int = 0,
    problem_type: str | None = None,
    processor: ProcessorStyle = "old",
    **config: Any,
) -> Path:
    """Write a random VideoMAE classifier and its processor JSON into ``folder`` (made if missing); returns it.

    ``processor="old"`` writes ``preprocessor_config.json`` as the published VideoMAE checkpoints have it, ``"new"``
    ``video_preprocessor_config.json``, ``"nested"`` ``processor_config.json``, ``"none"`` nothing.
    The weights are spread wider than Transformers would, so that logits differ clearly between videos.
    """
    sizes = {
        "image_size": size,
        "patch_size": patch_size,
        "num_frames": num_frames,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, hidden_size // 32),
        "intermediate_size": hidden_size * 4,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 1,
        "decoder_intermediate_size": 32,
        "initializer_range": 0.2,
    }
    model_class = ("videomae.modeling_videomae", "VideoMAEForVideoClassification")
    config_class = ("videomae.configuration_videomae", "VideoMAEConfig")
    path = make_classifier(
        folder,
        model_class=model_class,
        config_class=config_class,
        labels=labels,
        seed=seed,
        problem_type=problem_type,
        config={**sizes, **config},
    )
    if processor != "none":
        write_processor(path, processor_values(size), style=processor, family="VideoMAE")
    return path


def make_benchmark_videomae(folder: str | Path, *, labels: Sequence[str] = UCF_LABELS, seed: int = 0) -> Path:
    """The checkpoint of the scoring benchmark: 2 layers × 96 hidden, 16 frames of 224×224."""
    return make_videomae(
        folder, labels=labels, num_frames=16, size=224, patch_size=16, hidden_size=96, num_layers=2, seed=seed
    )


def make_classifier(
    folder: str | Path,
    *,
    model_class: tuple[str, str],
    config_class: tuple[str, str],
    labels: Sequence[str],
    config: dict[str, Any],
    seed: int = 0,
    problem_type: str | None = None,
    spread: float = 1,
) -> Path:
    """Write a random classifier of any family, without a processor JSON; returns its folder.

    Classes are given as (module of vidray or below ``transformers.models``, name). ``spread`` multiplies all matrices.
    """
    import torch

    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    values = _import(config_class)(**config, **names, problem_type=problem_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _import(model_class)(values)
        _randomise_vectors(model)
        _spread(model, spread)
    path = Path(folder)
    model.save_pretrained(path)
    return path


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}

TINY: dict[str, dict[str, Any]] = {
    "videomae": {**SMALL, "image_size": 32, "patch_size": 16, "num_frames": 4},
    "timesformer": {**SMALL, "image_size": 32, "patch_size": 16, "num_frames": 4},
    "vivit": {**SMALL, "image_size": 32, "tubelet_size": [2, 16, 16], "num_frames": 4},
    "vjepa2": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "crop_size": 32,
        "patch_size": 16,
        "frames_per_clip": 4,
        "num_pooler_layers": 1,
        "pred_hidden_size": 24,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
        "pred_num_mask_tokens": 1,
    },
    "videoprism_vision_model": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_spatial_layers": 1,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 1,
        "image_size": 36,
        "tubelet_size": [1, 18, 18],
        "num_frames": 4,
    },
    "pytorchvideo_resnet": {"variant": "slow_r50", "width": 8, "num_frames": 4, "image_size": 32},
    "pytorchvideo_slowfast": {"variant": "slowfast_r50", "width": 8, "num_frames": 8, "image_size": 32},
    "pytorchvideo_x3d": {"variant": "x3d_xs", "width": 8, "num_frames": 4, "image_size": 32},
    "pytorchvideo_mvit": {"variant": "mvit_base_16x4", "width": 16, "num_frames": 4, "image_size": 32},
    "movinet": {
        "stem_channels": 8,
        "blocks": "8:24d 16b|16:32c 40c|24:48b 40d",
        "project_channels": 32,
        "hidden_size": 32,
        "num_frames": 4,
        "image_size": 32,
    },
}
"""A config for each family that makes a network of a fraction of a second."""


def _movinets() -> dict[str, tuple[str, dict[str, Any]]]:
    """All layers of A0 to A5, each an eighth as wide as published."""
    from vidray.models.movinet.variants import POSITION_ENCODED, VARIANTS

    def narrow(blocks: str) -> str:
        return re.sub(r"(\d+)(?=[abcd:])", lambda match: str(max(8, int(match[1]) // 64 * 8)), blocks)

    return {
        f"movinet_{name}_{kind}": (
            "movinet",
            {
                "variant": name,
                "stem_channels": 8,
                "blocks": narrow(variant.blocks),
                "stream": kind == "stream",
                "position_encoding": kind == "stream" and name in POSITION_ENCODED,
            },
        )
        for name, variant in VARIANTS.items()
        for kind in ("base", "stream")
    }


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("videomae", "vjepa2", "videoprism_vision_model")},
    # Spread wider than usual: else the first token of such small networks hardly depends on the video.
    **{name: (name, {"initializer_range": 0.2}) for name in ("timesformer", "vivit")},
    "slow_r50": ("pytorchvideo_resnet", {}),
    "c2d_r50": ("pytorchvideo_resnet", {"variant": "c2d_r50"}),
    "i3d_r50": ("pytorchvideo_resnet", {"variant": "i3d_r50"}),
    "csn_r101": ("pytorchvideo_resnet", {"variant": "csn_r101", "num_frames": 8}),
    "r2plus1d_r50": ("pytorchvideo_resnet", {"variant": "r2plus1d_r50"}),
    "slowfast_r50": ("pytorchvideo_slowfast", {}),
    "slowfast_r101": ("pytorchvideo_slowfast", {"variant": "slowfast_r101"}),
    "x3d_xs": ("pytorchvideo_x3d", {}),
    "x3d_s": ("pytorchvideo_x3d", {"variant": "x3d_s", "num_frames": 5}),
    "x3d_m": ("pytorchvideo_x3d", {"variant": "x3d_m", "num_frames": 6}),
    "x3d_l": ("pytorchvideo_x3d", {"variant": "x3d_l"}),
    "mvit_base_16x4": ("pytorchvideo_mvit", {"dropout_rate": 0.0}),
    "mvit_base_32x3": ("pytorchvideo_mvit", {"dropout_rate": 0.0, "variant": "mvit_base_32x3", "num_frames": 8}),
    **_movinets(),
}
"""Every variant as (family, what its tiny config has besides ``TINY``)."""

_SPREADS = {"pytorchvideo_mvit": 5.0}
"""PyTorchVideo initialises MViT so that the first token of such a small one hardly depends on the video."""

_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "timesformer": ("VideoMAE", {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}),
    "vivit": ("Vivit", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}),
    "vjepa2": ("VJEPA2", {}),
    "videoprism_vision_model": ("VideoMAE", {"do_normalize": False}),
    "movinet": ("VideoMAE", {"do_normalize": False}),
}


def make_family(folder: str | Path, model_type: str, *, labels: Sequence[str], seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random classifier of a family with a processor JSON like the published ones; returns the folder.

    ``changes`` are of its tiny config.
    """
    from vidray.models.families import FAMILIES

    family = FAMILIES[model_type]
    path = make_classifier(
        folder,
        model_class=(family.module.removeprefix("transformers.models."), family.model_class),
        config_class=(family.config_module.removeprefix("transformers.models."), family.config_class),
        labels=labels,
        config=TINY[model_type] | changes,
        seed=seed,
        spread=_SPREADS.get(model_type, 1),
    )
    size = (TINY[model_type] | changes)[family.size_key]
    name, values = _PROCESSORS.get(model_type, ("VideoMAE", {}))
    if model_type.startswith("pytorchvideo"):
        values = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}
    write_processor(path, processor_values(size, **values), style="new", family=name)
    return path


def make_stream(
    folder: str | Path,
    *,
    labels: Sequence[str] = UCF_LABELS,
    stride: int = 6,
    size: int = 32,
    seed: int = 0,
    **more: Any,
) -> Path:
    """Write a tiny MoViNet stream classifier with a ``vidray.json``; returns its folder.

    ReZero is not zero and batch norm has seen frames, so every layer counts, and with it what the network remembers.
    """
    import torch

    from vidray.checkpoints.checkpoint import CheckpointMeta, write_vidray_json
    from vidray.models.movinet.configuration import MoViNetConfig
    from vidray.models.movinet.modeling import MoViNetForVideoClassification

    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = {**TINY["movinet"], "num_frames": 8, "image_size": size, **names, **more}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MoViNetForVideoClassification(MoViNetConfig(stream=True, **config))
        _wake_up(model, size)
    path = Path(folder)
    model.save_pretrained(path)
    write_processor(path, processor_values(size, do_normalize=False), style="new")
    view = ViewConfig(
        num_frames=8, size=size, stride=stride, span="full", num_clips=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    write_vidray_json(path, CheckpointMeta(view=view, labels=tuple(labels), family="movinet"))
    return path


def _wake_up(model: Any, size: int) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rezero", "position_scale")):
                parameter.uniform_(0.5, 1.0)
            elif name.startswith("classifier"):
                parameter.normal_(0, 0.5)
        model.train()
        for _ in range(3):
            model(torch.rand(2, 6, 3, size, size))
        model.eval()


def processor_values(size: int, **changes: Any) -> dict[str, Any]:
    """What a published VideoMAE processor JSON says, for views of ``size`` pixels."""
    values = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": size},
    }
    return {**values, **changes}


def write_processor(
    folder: str | Path, values: dict[str, Any], *, style: ProcessorStyle = "old", family: str = "VideoMAE"
) -> Path:
    """Write a processor JSON in the given style; returns the file."""
    old, new = f"{family}ImageProcessor", f"{family}VideoProcessor"
    name, content = {
        "old": ("preprocessor_config.json", {**values, "image_processor_type": old}),
        "new": ("video_preprocessor_config.json", {**values, "video_processor_type": new}),
        "nested": ("processor_config.json", {"video_processor": {**values, "video_processor_type": new}}),
    }[style]
    path = Path(folder) / name
    path.write_text(json.dumps(content, indent=2))
    return path


def _import(name: tuple[str, str]) -> Any:
    module = name[0] if name[0].startswith("vidray.") else f"transformers.models.{name[0]}"
    return getattr(importlib.import_module(module), name[1])


def _randomise_vectors(model: Any) -> None:
    """Biases and norms start at 0 and 1: a test that loses or swaps one would not notice, so make them random."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def _spread(model: Any, factor: float) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
