"""The models that there are, as ``vidray models`` prints them. Needs no torch: a test compares it with the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from vidray.models.movinet.variants import VARIANTS as MOVINETS
from vidray.models.pytorchvideo.variants import VARIANTS as PYTORCHVIDEO

Name = Literal["VideoMAE", "TimeSformer", "ViViT", "V-JEPA 2", "VideoPrism", "PyTorchVideo", "MoViNet"]


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """List the models, with what is needed to get their weights."""

    family: Annotated[Name | None, tyro.conf.arg(metavar="NAME")] = None
    """Only this family. Default: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One published model."""

    family: Name
    variant: str
    model_type: str
    num_parameters: int
    """That are trained, with the published number of classes (400 where there is none)."""
    num_frames: int
    rate: str
    """Which frames: ``x4`` is each fourth at 30 frames per second."""
    size: int
    """Side of a view in pixels."""
    accuracy: str = "-"
    """Published top-1 accuracy in percent, and on what."""
    source: str = "-"
    """Who says so."""
    weights: str
    """What to do to get them."""
    note: str = ""


def _hub(
    family: Name, variant: str, model_type: str, num_parameters: int, view: tuple[int, str, int], **values: str
) -> Entry:
    num_frames, rate, size = view
    return Entry(
        family=family,
        variant=variant,
        model_type=model_type,
        num_parameters=num_parameters,
        num_frames=num_frames,
        rate=rate,
        size=size,
        **values,
    )


_NO_NUM_FRAMES = "Transformers' pipeline needs num_frames=… in the call: published configs name it frames_per_clip"
_NO_CLASSIFIER = (
    "no published classifier; Transformers' pipeline cannot score it, since its logits have a dimension too many"
)

_FROM_HUB = (
    _hub(
        "VideoMAE",
        "base",
        "videomae",
        86_534_800,
        (16, "x4", 224),
        accuracy="80.9 Kinetics-400",
        source="VideoMAE's MODEL_ZOO.md, 5×3 views",
        weights="--model MCG-NJU/videomae-base-finetuned-kinetics",
    ),
    _hub(
        "VideoMAE",
        "large",
        "videomae",
        304_270_736,
        (16, "x4", 224),
        accuracy="84.7 Kinetics-400",
        source="VideoMAE's MODEL_ZOO.md, 5×3 views",
        weights="--model MCG-NJU/videomae-large-finetuned-kinetics",
    ),
    _hub(
        "TimeSformer",
        "base",
        "timesformer",
        121_566_352,
        (8, "x32", 224),
        accuracy="77.9 Kinetics-400",
        source="TimeSformer's README",
        weights="--model facebook/timesformer-base-finetuned-k400 --stride 32",
    ),
    _hub(
        "ViViT",
        "b-16x2",
        "vivit",
        88_954_000,
        (32, "x2", 224),
        accuracy="79.9 Kinetics-400",
        source="ViViT's README in Scenic, 4×3 views",
        weights="--model google/vivit-b-16x2-kinetics400 --stride 2",
    ),
    _hub(
        "V-JEPA 2",
        "vitl-fpc16-256",
        "vjepa2",
        375_485_998,
        (16, "x4", 256),
        accuracy="73.7 Something-Something v2",
        source="V-JEPA 2's README, 2×3 views",
        weights="--model facebook/vjepa2-vitl-fpc16-256-ssv2",
        note=_NO_NUM_FRAMES,
    ),
    _hub(
        "VideoPrism",
        "base-f16r288",
        "videoprism_vision_model",
        124_122_512,
        (16, "x4", 288),
        weights="fine-tune google/videoprism-base-f16r288",
        note=_NO_CLASSIFIER,
    ),
)

_MOVINET_NUMBERS = {
    # base parameters and accuracy, stream parameters and accuracy
    "a0": (3_111_799, 72.28, 3_748_031, 72.05),
    "a1": (4_690_296, 76.69, 6_447_352, 76.45),
    "a2": (5_249_562, 78.62, 7_326_962, 78.40),
    "a3": (7_397_545, 81.79, 10_986_618, 80.09),
    "a4": (11_349_463, 83.48, 18_136_182, 81.49),
    "a5": (18_650_523, 84.27, 31_495_934, 82.37),
}


def _movinet(name: str, *, stream: bool) -> Entry:
    variant = MOVINETS[name]
    num_parameters, top1 = _MOVINET_NUMBERS[name][2:] if stream else _MOVINET_NUMBERS[name][:2]
    kind = "stream" if stream else "base"
    return Entry(
        family="MoViNet",
        variant=f"{name}-{kind}",
        model_type="movinet",
        num_parameters=int(num_parameters),
        num_frames=variant.num_frames,
        rate=f"@{variant.fps} fps",
        size=variant.image_size,
        accuracy=f"{top1:.2f} Kinetics-600",
        source="MoViNet's README in the TensorFlow Model Garden, one view of 10 s",
        weights=f"convert movinet_{name}_{kind}.tar.gz",
    )


def _pytorchvideo(name: str) -> Entry:
    variant = PYTORCHVIDEO[name]
    return Entry(
        family="PyTorchVideo",
        variant=name,
        model_type=f"pytorchvideo_{variant.architecture}",
        num_parameters=variant.num_parameters,
        num_frames=variant.num_frames,
        rate=f"x{variant.sampling_rate}",
        size=variant.test_size,
        accuracy=f"{variant.top1:.2f} Kinetics-400",
        source=f"PyTorchVideo's model zoo{'' if variant.architecture == 'mvit' else ', 10×3 views'}",
        weights=f"convert {variant.weights_file}",
    )


CATALOGUE: tuple[Entry, ...] = (
    *_FROM_HUB,
    *(_pytorchvideo(name) for name in PYTORCHVIDEO),
    *(_movinet(name, stream=stream) for name in MOVINETS for stream in (False, True)),
)


_LEGEND = """INPUT: frames x stride (at 30 frames per second) or @ rate, height×width. PARAMETERS: that can be trained.
WEIGHTS: --model NAME works as it stands, in vidray score and vidray train: NAME is on the Hugging Face Hub.
  convert FILE.pyth: from https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/FILE.pyth,
    then vidray convert pytorchvideo VARIANT FILE.pyth FOLDER, then --model FOLDER
  convert FILE.tar.gz: from https://storage.googleapis.com/tf_model_garden/vision/movinet/FILE.tar.gz, unpack it,
    then vidray convert movinet FILE FOLDER, then --model FOLDER
Without weights, to try a model or to train it from scratch: vidray new FAMILY VARIANT FOLDER --labels FILE|N"""


def format_table(entries: Sequence[Entry]) -> str:
    """Aligned columns, one line per model; below, what the columns mean, and notes."""
    header = ("FAMILY", "VARIANT", "PARAMETERS", "INPUT", "TOP-1", "SOURCE", "WEIGHTS")
    rows = [header, *(_cells(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]) for row in rows]
    notes = [f"{entry.family} {entry.variant}: {entry.note}" for entry in entries if entry.note]
    loads = "All load with AutoModelForVideoClassification and transformers.pipeline after `import vidray`"
    return "\n".join([*lines, "", _LEGEND, f"{loads}{', but:' if notes else '.'}", *(f"  {note}" for note in notes)])


def _cells(entry: Entry) -> tuple[str, ...]:
    return (
        entry.family,
        entry.variant,
        f"{entry.num_parameters / 1e6:.2f}M",
        f"{entry.num_frames}{entry.rate} {entry.size}×{entry.size}",
        entry.accuracy,
        entry.source,
        entry.weights,
    )
