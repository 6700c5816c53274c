"""What all walks over a folder share: where they start, which files they keep, and where the rows go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from vidray.sources.patterns import FileFilter
from vidray.sources.rows import RowCollector
from vidray.sources.task_pool import TaskPool
from vidray.storage.location import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk(ABC):
    """The listing of every file below a folder. It is over when ``tasks.join`` returns."""

    folder: Location
    keep: FileFilter
    """Which files become rows."""
    rows: RowCollector
    tasks: TaskPool
    name_start: str = ""
    """Only names that start so are asked for, where the store can do that."""

    @abstractmethod
    def start(self) -> None:
        """Spawns the walk.

        Raises:
            OSError: a folder cannot be listed (from ``tasks.join``). Nothing is left out silently.
        """
