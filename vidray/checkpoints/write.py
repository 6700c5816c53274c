"""Writes a checkpoint: a Hugging Face folder, and ``vidray.json`` last."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from vidray.checkpoints.card import model_card
from vidray.checkpoints.checkpoint import CheckpointMeta, write_vidray_json
from vidray.errors import UsageError
from vidray.models.families import find_family
from vidray.models.processors import processor_json
from vidray.types import ViewConfig


def write_checkpoint(
    model: Any,
    view: ViewConfig,
    folder: Path,
    *,
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> CheckpointMeta:
    """Save a model of Transformers with all that scoring needs, ``vidray.json`` last; returns its content."""
    from vidray.models.loading import quiet

    if getattr(model.config, "num_frames", None) is None:
        model.config.num_frames = view.num_frames  # transformers.pipeline asks for it
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
        metrics=metrics or {},
        training=training or {},
    )
    return write_vidray_json(folder, meta)


def new_folder(output: str) -> Path:
    """Where to write. Raises UsageError unless it can be a new or empty folder on this machine."""
    if "://" in output:
        raise UsageError(f"the output must be a folder on this machine, got {output}; copy it to a store afterwards")
    path = Path(output).absolute()
    if path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists():
        raise UsageError(f"{output} is there already; name a folder that is not or is empty, or remove it first")
    return path


def write_new_checkpoint(
    model: Any, view: ViewConfig, output: Path, *, training: dict[str, Any], title: str, text: str
) -> CheckpointMeta:
    """Write a checkpoint and its README.md to a folder that is new or empty (see ``new_folder``): whole or not at all.

    Raises:
        UsageError: nothing can be written there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
            folder = Path(scratch) / output.name
            meta = write_checkpoint(model, view, folder, training=training)
            (folder / "README.md").write_text(model_card(meta, title=title, text=text), encoding="utf-8")
            os.rename(folder, output)  # also over an empty folder
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error}") from error
    return meta
