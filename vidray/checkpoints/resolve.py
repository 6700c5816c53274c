"""Where a checkpoint's files come from: a local folder, any fsspec file system, or the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vidray.errors import UsageError
from vidray.storage.localize import localize

ALLOWED_FILES = ("*.json", "model*.safetensors")
"""What is brought from afar: never code, never pickles."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A checkpoint's files on this machine."""

    folder: str
    location: str
    """Finds the same files again from any machine."""


def bring(location: str) -> Found:
    """Bring the files of a checkpoint to this machine.

    Raises:
        UsageError: there is no such folder and no such Hub id.
    """
    local = location.removeprefix("file://")
    if os.path.isdir(local):
        return Found(folder=os.path.abspath(local), location=os.path.abspath(local))
    if "://" in location or "::" in location:
        return Found(folder=localize(location, ALLOWED_FILES, cache_folder() / "checkpoints"), location=location)
    if _HUB_ID.fullmatch(location):
        return _from_hub(location)
    raise UsageError(f"there is no checkpoint folder {location!r}, and it is no Hub id of the form org/name either")


def cache_folder() -> Path:
    """Where this machine keeps checkpoints from afar: ``$VIDRAY_CACHE``, else a folder in the user's cache."""
    if named := os.environ.get("VIDRAY_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidray"


def _from_hub(location: str) -> Found:
    """A snapshot from the Hub's cache on this machine, downloaded first if it is not there.

    What is cached is used as it is, without asking the Hub, so that a nightly run neither needs the network nor
    changes its model by itself. ``org/name@revision`` asks for another one.
    """
    name, _, revision = location.partition("@")
    folder = _cached(name, revision or None) or _download(name, revision or None)
    return Found(folder=folder, location=f"{name}@{Path(folder).name}")


def _cached(name: str, revision: str | None) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=list(ALLOWED_FILES))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if _is_whole(Path(folder)) else None


def _is_whole(folder: Path) -> bool:
    """False if a part is missing: a download was interrupted, or another program wanted config.json alone."""
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
        if constants.HF_HUB_OFFLINE:  # else it hands out what there is, whole or not
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        return snapshot_download(name, revision=revision, allow_patterns=list(ALLOWED_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, OSError) as error:
        wanted = f"{name}@{revision}" if revision else name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{wanted!r} is neither a local folder, nor whole in this machine's Hub cache, nor could it be "
            f"brought from the Hub: {reason}"
        ) from error
