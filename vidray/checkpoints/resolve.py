"""Finds a checkpoint's files: in a local folder, on any fsspec file system, or on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vidray.errors import UsageError
from vidray.storage.localize import localize
from vidray.storage.location import locate

ALLOWED_FILES = ("*.json", "model*.safetensors", "merges.txt")
"""What is downloaded: never code, never pickles. ``merges.txt`` is a tokenizer's."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFiles:
    """A checkpoint's files on this machine."""

    folder: str
    location: str
    """Finds the same files again from any machine."""


def resolve_checkpoint(location: str) -> CheckpointFiles:
    """Find the files of a checkpoint, and download them if they are not on this machine.

    Raises:
        UsageError: there is no such folder and no such Hub id.
    """
    place = locate(location)
    if place.kind != "local":
        return CheckpointFiles(folder=localize(place, ALLOWED_FILES, cache_folder() / "checkpoints"), location=location)
    if location and os.path.isdir(place.path):
        return CheckpointFiles(folder=place.path, location=place.path)
    if _HUB_ID.fullmatch(location):
        return _from_hub(location)
    raise UsageError(f"there is no checkpoint folder {location!r}, and it is no Hub id of the form org/name either")


def cache_folder() -> Path:
    """Where this machine keeps downloaded checkpoints: ``$VIDRAY_CACHE``, else a folder in the user's cache."""
    if named := os.environ.get("VIDRAY_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidray"


def _from_hub(location: str) -> CheckpointFiles:
    """A snapshot from the Hub's cache on this machine, downloaded first if it is not there.

    A cached snapshot is used without asking the Hub, so that a nightly run neither needs the network nor changes its
    model by itself. ``org/name@revision`` asks for another one.
    """
    name, _, revision = location.partition("@")
    folder = _cached(name, revision or None) or _download(name, revision or None)
    return CheckpointFiles(folder=folder, location=f"{name}@{Path(folder).name}")


def _cached(name: str, revision: str | None) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=list(ALLOWED_FILES))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if _is_whole(Path(folder)) else None


def _is_whole(folder: Path) -> bool:
    """False if a file is missing: a download was interrupted, or another program wanted config.json alone."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {"model.safetensors"}
    return all((folder / name).exists() for name in {"config.json", *names})


def _download(name: str, revision: str | None) -> str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        if constants.HF_HUB_OFFLINE:  # else it returns a snapshot that may lack files
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        return snapshot_download(name, revision=revision, allow_patterns=list(ALLOWED_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, OSError) as error:
        wanted = f"{name}@{revision}" if revision else name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{wanted!r} is neither a local folder, nor whole in this machine's Hub cache, nor could it be "
            f"downloaded from the Hub: {reason}"
        ) from error
