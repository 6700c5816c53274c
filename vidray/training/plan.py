"""What a run was asked for, stored in its output before it starts: the settings, and the labelled manifest.

    <output>/_train/manifest-<hash>.parquet    every labelled video with its part of the split
    <output>/_train/settings.json              last; names the manifest

A run that is resumed reads the manifest instead of listing the source again, since an epoch's order is a permutation of
its rows. (Videos that are opened through signed URLs are listed again for these alone.) It is refused if its settings
are others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vidray.checkpoints.checkpoint import VIDRAY_FILE, Checkpoint, read_checkpoint, require_labels
from vidray.errors import UsageError
from vidray.sources.labels import LabelledManifest, LabelSource, load_labelled
from vidray.sources.signed_urls import lacks_secrets, paths_of, with_secrets
from vidray.storage.folder_kind import require_kind
from vidray.storage.redaction import public_uri
from vidray.storage.store import Store
from vidray.training.config import TrainConfig

SETTINGS_FILE = "_train/settings.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """What is trained."""

    checkpoint: Checkpoint
    manifest: LabelledManifest
    is_finished: bool
    """The output holds the finished checkpoint of just this run."""


def prepare_output(config: TrainConfig, *, log: Callable[[str], None]) -> TrainingPlan:
    """Begin a run in its output, or come back to it. Called once per command, before anything expensive.

    Raises:
        UsageError: the source, the model or the output will not do, or the output is of a run with other settings.
    """
    checkpoint = read_checkpoint(config.model, require_head=False)
    require_labels(checkpoint)
    config.view(checkpoint.view)  # refuses what the model cannot take
    store = Store(config.output)
    if not store.exists(SETTINGS_FILE):
        if store.exists(VIDRAY_FILE) or store.exists("config.json"):
            raise UsageError(f"--output {store.uri} holds a checkpoint that no run of vidray train made; take another")
        store.probe()
        require_kind(store, "checkpoint")
        return read_plan(config, checkpoint, listed=_write_plan(store, config, checkpoint, log=log))
    return read_plan(config, checkpoint)


def read_plan(
    config: TrainConfig, checkpoint: Checkpoint | None = None, *, listed: LabelledManifest | None = None
) -> TrainingPlan:
    """The plan that is in the output.

    Args:
        listed: the sources, if they were listed just now.

    Raises:
        UsageError: it is of other settings.
    """
    checkpoint = checkpoint or read_checkpoint(config.model, require_head=False)
    store = Store(config.output)
    stored = store.read_json(SETTINGS_FILE)
    is_finished = store.exists(VIDRAY_FILE)
    _refuse_other_settings(stored, _settings(config, checkpoint), store.uri, is_finished=is_finished)
    manifest = LabelledManifest.from_parquet(store.read(stored["manifest"]))
    if not is_finished and lacks_secrets(manifest.table):
        listed = listed or load_labelled(label_source(config))
        manifest = dataclasses.replace(manifest, table=with_secrets(manifest.table, paths_of(listed.table)))
    return TrainingPlan(checkpoint=checkpoint, manifest=manifest, is_finished=is_finished)


def label_source(config: TrainConfig) -> LabelSource:
    """Where the labelled videos are."""
    return LabelSource(
        source=config.source,
        video_root=config.video_root,
        list_labels=config.list_labels,
        group_regex=config.group_regex,
        group_column=config.group_column,
        label_key=config.label_key,
        validation_share=config.validation_share,
        seed=config.seed,
    )


def _write_plan(
    store: Store, config: TrainConfig, checkpoint: Checkpoint, *, log: Callable[[str], None]
) -> LabelledManifest:
    """Returns what was listed."""
    log(f"listing {', '.join(map(public_uri, config.source))}")
    listed = load_labelled(label_source(config))
    data = listed.public().to_parquet()
    name = f"_train/manifest-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    with contextlib.suppress(FileExistsError):  # the same bytes, from an attempt that was cut off here
        store.create(name, data)
    content = {"manifest": name, **_settings(config, checkpoint)}
    with contextlib.suppress(FileExistsError):  # another process was first; read_plan compares
        store.create(SETTINGS_FILE, json.dumps(content, indent=2, ensure_ascii=False).encode())
    return listed


def _settings(config: TrainConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """As JSON gives them back."""
    settings = {**config.settings(), "model_fingerprint": checkpoint.fingerprint}
    return json.loads(json.dumps(settings))


def _refuse_other_settings(stored: dict[str, Any], asked: dict[str, Any], uri: str, *, is_finished: bool) -> None:
    defaults = {item.name: item.default for item in dataclasses.fields(TrainConfig)}  # of flags that came later
    different = [name for name in asked if stored.get(name, defaults.get(name)) != asked[name]]
    if different:
        named = "; ".join(f"{name}: {stored.get(name)!r} there, {asked[name]!r} now" for name in different)
        further = f", and to train this model further --model {uri}" if is_finished else ""
        raise UsageError(
            f"--output {uri} belongs to a run with other settings ({named}); take another --output{further}"
        )
