"""Which files hold the rows of an output, each row once: merged copies of finished runs, and the parts of all others.

    <output>/_merged/00000002.json                      the newest list of merged copies: the greatest name counts
    <output>/_merged/00000002-1a2b3c4d/part-00000.parquet

`vidray compact` writes them. A copy counts while each of its runs has as many parts as it had then, so the folder is a
cache: it may be deleted at any time, and what it says is never needed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vidray.scoring.output import run_of_part, shard_of_part
from vidray.storage.store import Store

FOLDER = "_merged"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that were merged together."""

    runs: dict[str, int]
    """How many parts each had."""
    files: dict[str, int]
    """Paths in the output, and bytes."""

    def is_whole(self, parts: Counter[str], there: dict[str, int]) -> bool:
        """Whether it holds the same rows as the parts that there are."""
        return all(parts[run] == count for run, count in self.runs.items()) and self.files.items() <= there.items()


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFiles:
    """Where all rows are."""

    groups: tuple[Group, ...]
    """Merged copies that count."""
    number: int
    """Of the newest list of them; 0 if there is none."""
    parts: dict[str, dict[str, int]]
    """Of each run that is in no such copy the paths of its parts, and their bytes."""

    @property
    def sizes(self) -> dict[str, int]:
        """Every file that is to be read, and its bytes."""
        sizes = {path: size for group in self.groups for path, size in group.files.items()}
        return sizes | {path: size for parts in self.parts.values() for path, size in parts.items()}


def find_row_files(store: Store) -> RowFiles:
    """List an output.

    Raises:
        RunError: the store failed.
    """
    parts: dict[str, dict[str, int]] = defaultdict(dict)
    for path, size in store.list_sizes("predictions").items():
        if shard_of_part(path) is not None:
            parts[run_of_part(path)][path] = size
    there = store.list_sizes(FOLDER)
    names = sorted(path for path in there if path.endswith(".json"))
    counts = Counter({run: len(paths) for run, paths in parts.items()})
    listed = _read(store, names[-1]) if names else ()
    groups = tuple(group for group in listed if group.is_whole(counts, there))
    merged = {run for group in groups for run in group.runs}
    return RowFiles(
        groups=groups,
        number=int(names[-1].rpartition("/")[2].removesuffix(".json")) if names else 0,
        parts={run: paths for run, paths in parts.items() if run not in merged},
    )


def _read(store: Store, path: str) -> Iterable[Group]:
    """Nothing where somebody has just deleted it."""
    try:
        return [Group(runs=one["runs"], files=one["files"]) for one in json.loads(store.read(path))["groups"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ()
