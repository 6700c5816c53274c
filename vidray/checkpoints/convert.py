"""``vidray convert``: from published weights to a checkpoint folder that ``vidray score --model`` takes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vidray.checkpoints.checkpoint import CheckpointMeta, write_vidray_json
from vidray.errors import UsageError
from vidray.models.families import find_family
from vidray.models.processors import processor_json
from vidray.models.pytorchvideo.variants import VARIANTS
from vidray.types import REFERENCE_FPS, ViewConfig


@dataclass(frozen=True, kw_only=True)
class ConvertMoViNet:
    """Make a checkpoint from a MoViNet of the TensorFlow Model Garden or of the community's PyTorch port."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A TensorFlow checkpoint (.../ckpt-1, its .index file, or its folder), or a file with a PyTorch state dict."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to make. It must not be there yet."""
    variant: Literal["a0", "a1", "a2", "a3", "a4", "a5"] | None = None
    """What the weights must be of. Default: found out from the weights."""
    kind: Literal["base", "stream"] | None = None
    """What the weights must be of. Default: found out from the weights."""
    labels: str | None = None
    """A text file with the names of the classes, one per line, in the order of the logits. Default: numbers."""


@dataclass(frozen=True, kw_only=True)
class ConvertPyTorchVideo:
    """Make a checkpoint from a file of PyTorchVideo's model zoo."""

    variant: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VARIANT")]
    """Which network it is: slow_r50, slowfast_r50, x3d_m, mvit_base_16x4 …; `vidray models` lists them."""
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The file with the state dict (.pyth)."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to make. It must not be there yet."""
    labels: str | None = None
    """A text file with the names of the classes, one per line, in the order of the logits. Default: numbers."""


Conversion = (
    Annotated[ConvertMoViNet, tyro.conf.subcommand("movinet")]
    | Annotated[ConvertPyTorchVideo, tyro.conf.subcommand("pytorchvideo")]
)
"""What ``vidray convert`` is asked for."""


def convert(conversion: ConvertMoViNet | ConvertPyTorchVideo) -> CheckpointMeta:
    """Convert, and write the folder whole or not at all.

    Raises: UsageError if the weights do not fit, the labels are of no use, or the output is there already.
    """
    output = _new_folder(conversion.output)
    labels = None if conversion.labels is None else read_labels(Path(conversion.labels))
    if isinstance(conversion, ConvertMoViNet):
        model, view = _movinet(conversion, labels)
    else:
        model, view = _pytorchvideo(conversion, labels)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch) / output.name
        meta = write_checkpoint(model, view, folder, source=Path(conversion.source))
        shutil.move(folder, output)
    return meta


def write_checkpoint(model: Any, view: ViewConfig, folder: Path, *, source: Path | None = None) -> CheckpointMeta:
    """Save a model of Transformers with all that scoring needs, ``vidray.json`` last; returns its content."""
    from vidray.models.loading import quiet

    with quiet():
        model.save_pretrained(folder)
    family = find_family(model.config.model_type)
    text = json.dumps(processor_json(view, family=family), indent=2) + "\n"
    (folder / "video_preprocessor_config.json").write_text(text, encoding="utf-8")
    id2label = model.config.id2label
    meta = CheckpointMeta(
        view=view,
        labels=tuple(id2label[index] for index in range(len(id2label))),
        family=family.model_type,
        training={} if source is None else {"converted_from": _describe(source)},
    )
    return write_vidray_json(folder, meta)


def read_labels(path: Path) -> list[str]:
    """The lines of a text file. Raises UsageError if it cannot be read, or has no names, empty ones or doubles."""
    try:
        labels = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--labels {path}: {error}") from error
    doubles = sorted({label for label in labels if labels.count(label) > 1})
    if not labels or "" in labels or doubles:
        raise UsageError(f"--labels {path}: needs one name per line, each once and none empty; doubles: {doubles}")
    return labels


def _movinet(conversion: ConvertMoViNet, labels: list[str] | None) -> tuple[Any, ViewConfig]:
    from vidray.models.movinet.convert import convert_movinet

    stream = None if conversion.kind is None else conversion.kind == "stream"
    model = convert_movinet(conversion.source, variant=conversion.variant, stream=stream, labels=labels)
    return model, movinet_view(model.config)


def movinet_view(config: Any) -> ViewConfig:
    """How a published MoViNet wants its views: one, of the whole video; pixels in [0, 1]."""
    return ViewConfig(
        num_frames=config.num_frames,
        size=config.image_size,
        stride=round(REFERENCE_FPS / config.fps),
        span="full",
        num_clips=1,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def _pytorchvideo(conversion: ConvertPyTorchVideo, labels: list[str] | None) -> tuple[Any, ViewConfig]:
    from vidray.models.pytorchvideo.convert import convert_pytorchvideo

    model = convert_pytorchvideo(conversion.source, variant=conversion.variant, labels=labels)
    return model, VARIANTS[conversion.variant].view


def _new_folder(output: str) -> Path:
    if "://" in output:
        raise UsageError(f"the output must be a folder on this machine, got {output}; copy it to a store afterwards")
    path = Path(output).absolute()
    if path.exists():
        raise UsageError(f"{output} is there already; name a folder that is not, or remove it first")
    return path


def _describe(source: Path) -> dict[str, str]:
    """What a reader needs to find the weights again: the name, and a hash where it is one file."""
    if not source.is_file():
        return {"name": source.name}
    with open(source, "rb") as file:
        return {"name": source.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
