"""The finished checkpoint: a Hugging Face folder, ``vidray.json``, a model card, metrics and a report.

Made in a local folder and uploaded to the output object by object. ``vidray.json`` is the last, so its existence means
that everything is there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidray import __version__
from vidray.checkpoints.card import model_card
from vidray.checkpoints.checkpoint import VIDRAY_FILE, CheckpointMeta
from vidray.checkpoints.write import write_checkpoint
from vidray.errors import RunError
from vidray.models.families import Family
from vidray.sources.labels import LabelledManifest
from vidray.storage.store import Store
from vidray.training.config import TrainConfig
from vidray.training.loop.checkpoint_writer import METRICS_FILE
from vidray.types import ViewConfig

_PACKAGES = ("torch", "torchvision", "transformers", "ray", "av", "numpy")
_FIGURES = ("num_videos", "accuracy", "top5_accuracy", "mean_class_accuracy", "nll", "ece", "view_accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a finished run came to."""

    model: Any
    """The network with the weights to publish, on the CPU."""
    config: TrainConfig
    family: Family
    view: ViewConfig
    manifest: LabelledManifest
    metrics: dict[str, Any]
    """Figures of the last validation, with all views."""
    metrics_rows: Sequence[dict[str, Any]]
    """The lines of metrics.jsonl."""
    base_model: str
    best_epoch: int | None = None
    """From 1: the epoch after which the weights were validated best."""
    num_bad_videos: int = 0
    """Training videos that could not be used."""


def publish(
    result: TrainingResult,
    store: Store,
    *,
    add_files: Callable[[Path], None] = lambda folder: None,
    check_lease: Callable[[], None] = lambda: None,
) -> CheckpointMeta:
    """Write everything to the output; returns what ``vidray.json`` says.

    Args:
        add_files: adds files to the local folder before it is uploaded, such as a report.
        check_lease: raises if the output is another run's by now.

    Raises:
        RunError: there is a finished checkpoint already. Its ``vidray.json`` names files that must stay as they are.
    """
    with tempfile.TemporaryDirectory(prefix="vidray-publish-") as temporary:
        folder = Path(temporary)
        metrics = {key: value for key, value in result.metrics.items() if key != "confusion"}
        training = training_facts(result)
        meta = write_checkpoint(result.model, result.view, folder, training=training, metrics=metrics)
        (folder / "README.md").write_text(_card(result, meta), encoding="utf-8")
        (folder / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in result.metrics_rows))
        write_tensorboard(folder / "tb", result.metrics_rows)
        add_files(folder)
        check_lease()
        if store.exists(VIDRAY_FILE):
            raise RunError(f"{store.uri} was finished by another run meanwhile; it was left as it is")
        _upload(folder, store)
    return meta


def training_facts(result: TrainingResult) -> dict[str, Any]:
    """How the checkpoint came about, as plain values."""
    manifest = result.manifest
    counts = {split: manifest.count(split) for split in ("train", "val", "test")}
    facts = {
        "base_model": result.base_model,
        "recipe": result.config.recipe,
        "settings": result.config.settings(),
        "split": {"num_videos": counts, "classes": dict(Counter(manifest.table["label"].to_pylist()))},
        "best_epoch": result.best_epoch,
        "num_bad_videos": result.num_bad_videos,
        "versions": versions(),
        "git_commit": git_commit(),
    }
    return json.loads(json.dumps(facts))


def versions() -> dict[str, str]:
    """Of what decides on the result."""
    found = {"vidray": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the source that runs, or None where it is no repository (an installed or submitted package)."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _card(result: TrainingResult, meta: CheckpointMeta) -> str:
    """README.md: what the model is, how good, on what, and how to use it."""
    figures = "\n".join(f"| {name} | {_number(result.metrics[name])} |" for name in _FIGURES)
    view = result.view
    counts = meta.training["split"]["num_videos"]
    text = f"""Trained by vidray {__version__}, recipe `{result.config.recipe}`, on {counts["train"]} videos of
{len(meta.labels)} classes; validated on {counts["val"]} others. Best epoch: {result.best_epoch}.

| validation, {view.num_clips} clips × {view.num_crops} crops per video | |
|---|---|
{figures}

A view is {view.num_frames} frames of {view.size}×{view.size} pixels, span `{view.span}`, stride {view.stride} at 30
frames per second. `vidray.json` has the settings, the figures per class and the versions."""
    title = f"Video classifier fine-tuned from {result.base_model}"
    return model_card(meta, title=title, text=text, base_model=result.base_model)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def write_tensorboard(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """TensorBoard events of all numbers in the lines of metrics."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "epoch", "kind") and isinstance(value, int | float):
                    writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])


def push_to_hub(store: Store, repository: str) -> None:
    """Upload a finished output to the Hugging Face Hub, private unless the repository exists and is public.

    Raises:
        RunError: it could not be done; the output is as it was.
    """
    from huggingface_hub import HfApi

    try:
        with tempfile.TemporaryDirectory(prefix="vidray-push-") as folder:
            _download(store, Path(folder))
            api = HfApi()
            api.create_repo(repository, private=True, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Trained by vidray")
    except Exception as error:  # the Hub's client lets those of its HTTP library through, which changes now and then
        raise RunError(
            f"{store.uri} is finished, but --push-to-hub {repository} failed: {error}; the same command tries again"
        ) from error


def _download(store: Store, folder: Path) -> None:
    """What was published, without the states and the lease beside it."""
    for name in store.list(""):
        if not name.startswith("_"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.read(name))


def _upload(folder: Path, store: Store) -> None:
    """All files, ``vidray.json`` last. What an attempt that was cut off wrote is replaced."""
    paths = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    for path in sorted(paths, key=lambda path: (path.name == VIDRAY_FILE, path)):
        store.overwrite(path.relative_to(folder).as_posix(), path.read_bytes())
