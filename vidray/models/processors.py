"""Reads the processor JSON of a published checkpoint into a ViewConfig.

Follows Transformers 5.23's ``BaseVideoProcessor``: resize, centre crop, ``pixel * rescale_factor`` (ViViT: minus 1),
``(value - image_mean) / image_std``. All of that but the geometry is one affine map per channel, so it is folded
into the mean and std of ``ViewConfig``, which are for pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidray.errors import UsageError
from vidray.models.families import Family, InputRule
from vidray.types import ViewConfig

PROCESSOR_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
"""Where a processor may be described, in Transformers' order: nested under ``video_processor``, new and old style."""

_HALF, _IMAGENET_MEAN, _IMAGENET_STD = [0.5, 0.5, 0.5], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "VideoMAE": {"size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": _HALF, "image_std": _HALF},
    "Timesformer": {
        **{"size": {"shortest_edge": 224}, "crop_size": 224},
        **{"image_mean": _IMAGENET_MEAN, "image_std": _IMAGENET_STD},
    },
    "Vivit": {
        **{"size": {"shortest_edge": 256}, "crop_size": 224, "rescale_factor": 1 / 127.5},
        **{"image_mean": _HALF, "image_std": _HALF},
    },
    "VJEPA2": {"crop_size": 256, "image_mean": _IMAGENET_MEAN, "image_std": _IMAGENET_STD},
}
"""What Transformers' classes, by how their names begin, do where a file says nothing."""

Triple = tuple[float, float, float]


def pick_processor(files: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The description that counts among those found (file name to content), or None if there is none."""
    for name in PROCESSOR_FILES:
        content = files.get(name)
        if content is None:
            continue
        if name != "processor_config.json":
            return content
        for kind in ("video_processor", "image_processor"):
            if isinstance(nested := content.get(kind), dict):
                return nested
    return None


def read_view(processor: Mapping[str, Any], *, config: Mapping[str, Any], family: Family) -> ViewConfig:
    """The view config that a processor JSON and a config.json describe.

    Neither file says how clips are spread over a video: that is what is usual for the family, mostly 5 clips × 1 crop
    at stride 4.

    Raises:
        UsageError: a value is of no use, or contradicts what the model can take.
    """
    processor = _with_defaults(processor)
    model_size = _model_size(config, family)
    size, short_side, squeeze = _geometry(processor, model_size, family)
    mean, std = _affine(processor, family)
    return ViewConfig(
        num_frames=model_num_frames(config, family),
        size=size,
        short_side=None if short_side == size else short_side,
        squeeze=squeeze,
        stride=_stride(config, family),
        span=family.span,
        num_clips=family.num_clips,
        mean=mean,
        std=std,
    )


def processor_json(view: ViewConfig, *, family: Family) -> dict[str, Any]:
    """The content of a ``video_preprocessor_config.json`` that says the same as ``view``.

    Always one of two plain processors of Transformers, which do what the file says and nothing else: ViViT's own
    subtracts 1, and V-JEPA 2's own ignores the size that it is given.
    """
    named, resized = family.input_name == "pixel_values", view.short_side or view.size
    return {
        "video_processor_type": "VideoMAEVideoProcessor" if named else "LlavaOnevisionVideoProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resized, "width": resized} if view.squeeze else {"shortest_edge": resized},
        "default_to_square": False,
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": view.size, "width": view.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(view.mean),
        "image_std": list(view.std),
    }


def model_num_frames(config: Mapping[str, Any], family: Family) -> int:
    """Frames per clip that the model was built for."""
    return _positive(_at(config, family.num_frames_key, family.default_num_frames), family.num_frames_key)


def _at(config: Mapping[str, Any], key: str, default: object) -> object:
    """``vision_config.num_frames``: that of the mapping within."""
    outer, _, inner = key.rpartition(".")
    nested = config.get(outer) if outer else config
    return nested.get(inner, default) if isinstance(nested, Mapping) else default


def _stride(config: Mapping[str, Any], family: Family) -> int:
    """Frames between two sampled ones."""
    return 4 if family.stride_key is None else _positive(config.get(family.stride_key, 4), family.stride_key)


def _positive(value: object, key: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value


def check_view(view: ViewConfig, *, config: Mapping[str, Any], family: Family) -> None:
    """Raise UsageError if the model cannot take views of this shape."""
    num_frames, size = model_num_frames(config, family), _model_size(config, family)
    if allowed := refuse_input(family.input_rule, view.num_frames, (view.size, view.size), num_frames, size):
        raise UsageError(
            f"{config.get('variant', family.model_type)} takes {allowed}; the views have {view.num_frames} frames of "
            f"{view.size} pixels"
        )


def refuse_input(rule: InputRule, num_frames: int, sides: tuple[int, int], own_frames: int, own_size: int) -> str:
    """What is allowed, if a model built for ``own_frames`` of ``own_size`` cannot take the input; else nothing."""
    frames_fit = {"at_least": num_frames >= own_frames, "exact_size": True}.get(rule, num_frames == own_frames)
    size_fits = sides == (own_size, own_size) if rule in ("exact", "exact_size") else min(sides) >= own_size
    if rule == "any" or (frames_fit and size_fits):
        return ""
    frames, size = f"{own_frames} frames", f"{own_size}×{own_size} pixels"
    return {
        "exact": f"only what it was built for, {frames} of {size}",
        "exact_frames": f"just {frames} of at least {size}",
        "exact_size": f"any number of frames of just {size}",
        "at_least": f"at least {frames} of at least {size}",
    }[rule]


def _model_size(config: Mapping[str, Any], family: Family) -> int:
    return _square(_at(config, family.size_key, family.default_size), f"config.json: {family.size_key}")


def _kind(processor: Mapping[str, Any]) -> str:
    """The name of the processor's class; empty if the file does not tell."""
    keys = ("video_processor_type", "image_processor_type", "feature_extractor_type")
    return str(next((processor[key] for key in keys if processor.get(key)), ""))


def _with_defaults(processor: Mapping[str, Any]) -> dict[str, Any]:
    """The file with what its class does where it says nothing."""
    kind = _kind(processor)
    for start, defaults in _CLASS_DEFAULTS.items():
        if kind.startswith(start):
            return {**defaults, **processor}
    return dict(processor)


def _geometry(processor: Mapping[str, Any], model_size: int, family: Family) -> tuple[int, int, bool]:
    """(side of the crop, side before cropping, in pixels; whether the frame is squeezed into a square of it).

    Raises:
        UsageError: frames of any shape would reach the network, or the crop is larger than the frame.
    """
    if processor.get("do_resize") is False:
        raise UsageError("the processor JSON has do_resize false: frames of any size; set it to true, with a size")
    resized = processor.get("size", model_size)
    if _kind(processor).startswith("VJEPA2"):  # whatever its file says
        resized = {"shortest_edge": int(_square(processor["crop_size"], "processor: crop_size") * 256 / 224)}
    if isinstance(resized, Mapping) and "shortest_edge" in resized:
        short_side, squeeze = _square(resized["shortest_edge"], "processor: size"), False
    else:
        short_side = _square(resized, "processor: size")
        squeeze = isinstance(resized, Mapping) or processor.get("default_to_square") is True
    crops = processor.get("do_center_crop") is not False and processor.get("crop_size") is not None
    if processor.get("do_center_crop") is False and not squeeze:
        raise UsageError(
            "the processor JSON has do_center_crop false: frames that are not square; set it to true, with a "
            'crop_size, or give size as {"height": n, "width": n}'
        )
    size = _square(processor["crop_size"], "processor: crop_size") if crops else short_side
    if size > short_side:
        raise UsageError(f"the processor JSON crops {size} pixels out of {short_side}; crop_size is at most size")
    if family.input_rule in ("exact", "exact_size") and size != model_size:
        raise UsageError(
            f"the processor JSON makes frames of {size} pixels, but config.json says {family.size_key} {model_size} "
            f"and {family.model_type} takes no other; correct the one that is wrong"
        )
    return size, short_side, squeeze


def _square(value: object, name: str) -> int:
    """The side of a square given as n, [n, n] or {"height": n, "width": n}."""
    sides: Sequence[object] = [value]
    if isinstance(value, Mapping):
        sides = [value.get("height"), value.get("width")]
    elif isinstance(value, (list, tuple)):
        sides = list(value)
    first = sides[0] if sides else None
    if not isinstance(first, int) or isinstance(first, bool) or first < 1 or any(side != first for side in sides):
        raise UsageError(f"{name} must be a square of at least one pixel, got {value!r}")
    return first


def _affine(processor: Mapping[str, Any], family: Family) -> tuple[Triple, Triple]:
    """(mean, std) such that ``(pixel / 255 - mean) / std`` is what the processor computes from ``pixel``.

    It computes ``(pixel * factor - shift - m) / s``; with ``gain = 255 * factor`` that is
    ``(pixel / 255 - (shift + m) / gain) / (s / gain)``.
    """
    rescales, normalises = processor.get("do_rescale") is not False, processor.get("do_normalize") is not False
    factor = processor.get("rescale_factor", family.rescale_factor) if rescales else 1.0
    if not isinstance(factor, (int, float)) or factor <= 0:
        raise UsageError(f"processor: rescale_factor must be a positive number, got {factor!r}")
    gain = _tidy(255 * factor)
    if processor.get("rescale_offset"):
        raise UsageError(
            "processor: rescale_offset is of no processor of videos; take it out, or write it into image_mean"
        )
    shift = 1.0 if rescales and _has_offset(processor, family) else 0.0
    mean = _triple(processor.get("image_mean", family.mean), "image_mean") if normalises else (0.0, 0.0, 0.0)
    std = _triple(processor.get("image_std", family.std), "image_std") if normalises else (1.0, 1.0, 1.0)
    if min(std) <= 0:
        raise UsageError(f"processor: image_std must be positive, got {list(std)}")
    r, g, b = ((shift + m) / gain for m in mean)
    sr, sg, sb = (s / gain for s in std)
    return (r, g, b), (sr, sg, sb)


def _has_offset(processor: Mapping[str, Any], family: Family) -> bool:
    """ViViT's processors subtract 1 unless told otherwise; no other processor does."""
    kind = _kind(processor)
    default = kind.startswith("Vivit") if kind else family.offset
    return bool(processor.get("offset", default))


def _triple(value: object, name: str) -> Triple:
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(v, (int, float)) for v in values)
    ):
        raise UsageError(f"processor: {name} must be one number per channel, red, green and blue, got {value!r}")
    r, g, b = (float(v) for v in values)
    return r, g, b


def _tidy(gain: float) -> float:
    """JSON files write 1/255 with differing numbers of digits; the same model shall get the same view config."""
    nearest = float(round(gain))
    return nearest if nearest > 0 and abs(gain - nearest) < 1e-6 else gain
