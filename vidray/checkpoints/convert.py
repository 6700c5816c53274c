"""``vidray convert``: from published weights to a checkpoint folder that ``vidray score --model`` takes."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vidray import __version__
from vidray.checkpoints.checkpoint import CheckpointMeta
from vidray.checkpoints.write import new_folder, write_new_checkpoint
from vidray.errors import UsageError
from vidray.models.movinet.variants import movinet_view
from vidray.models.pytorchvideo.variants import VARIANTS
from vidray.types import ViewConfig


@dataclass(frozen=True, kw_only=True)
class ConvertMoViNet:
    """Make a checkpoint from a MoViNet of the TensorFlow Model Garden or of the community's PyTorch port."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A TensorFlow checkpoint (.../ckpt-1, its .index file, or its folder), or a file with a PyTorch state dict."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to make. It must be new or empty."""
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
    """The folder to make. It must be new or empty."""
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
    output = new_folder(conversion.output)
    labels = None if conversion.labels is None else read_labels(Path(conversion.labels))
    if isinstance(conversion, ConvertMoViNet):
        model, view = _movinet(conversion, labels)
    else:
        model, view = _pytorchvideo(conversion, labels)
    source = _describe(Path(conversion.source))
    return write_new_checkpoint(
        model,
        view,
        output,
        training={"converted_from": source},
        title=f"{model.config.model_type} {model.config.variant}",
        text=f"Converted by vidray {__version__} from `{source['name']}`.",
    )


def read_labels(path: Path) -> list[str]:
    """The lines of a text file. Raises UsageError if it cannot be read, or has no names, empty ones or doubles."""
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))  # as labels of videos are read
        labels = [line.strip() for line in text.rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--labels {path}: {error}") from error
    doubles = sorted({label for label in labels if labels.count(label) > 1})
    if not labels or "" in labels or doubles:
        raise UsageError(f"--labels {path}: needs one name per line, each once and none empty; doubles: {doubles}")
    return labels


def parse_labels(text: str) -> list[str]:
    """Labels with semicolons between, or the lines of a file; raises as `read_labels`."""
    if ";" not in text and os.path.exists(text):
        return read_labels(Path(text))
    return [label.strip() for label in text.split(";")]


def _movinet(conversion: ConvertMoViNet, labels: list[str] | None) -> tuple[Any, ViewConfig]:
    from vidray.models.movinet.convert import convert_movinet

    stream = None if conversion.kind is None else conversion.kind == "stream"
    model = convert_movinet(conversion.source, variant=conversion.variant, stream=stream, labels=labels)
    return model, movinet_view(model.config)


def _pytorchvideo(conversion: ConvertPyTorchVideo, labels: list[str] | None) -> tuple[Any, ViewConfig]:
    from vidray.models.pytorchvideo.convert import convert_pytorchvideo

    model = convert_pytorchvideo(conversion.source, variant=conversion.variant, labels=labels)
    return model, VARIANTS[conversion.variant].view


def _describe(source: Path) -> dict[str, str]:
    """What a reader needs to find the weights again: the name, and a hash where it is one file."""
    if not source.is_file():
        return {"name": source.name}
    with open(source, "rb") as file:
        return {"name": source.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
