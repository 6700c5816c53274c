"""What a folder holds already: results of two commands in one folder would be taken for each other's."""

from __future__ import annotations

from typing import Literal

from vidray.errors import UsageError
from vidray.storage.store import Store

Kind = Literal["scores", "checkpoint", "evaluation"]

_MARKS: dict[Kind, tuple[str, ...]] = {
    "checkpoint": ("vidray.json", "config.json", "_train/settings.json"),
    "evaluation": ("evaluation.parquet",),
}
_NAMES: dict[Kind, str] = {
    "scores": "the output of vidray score",
    "checkpoint": "a checkpoint of vidray train",
    "evaluation": "the output of vidray evaluate",
}


def require_kind(store: Store, kind: Kind) -> None:
    """Raises UsageError if a folder that is to be written to holds results of another kind."""
    for other in _NAMES:
        if other != kind and _holds(store, other):
            raise UsageError(f"--output: {store.uri} is {_NAMES[other]}; take a folder of its own")


def _holds(store: Store, kind: Kind) -> bool:
    if kind == "scores":
        return bool(store.list("_verdicts") or store.list("_runs"))
    return any(store.exists(mark) for mark in _MARKS[kind])
