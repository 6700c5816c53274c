"""Lists a folder on a local disk: a task per folder, and one per thousand files of a large one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vidray.sources.rows import spell
from vidray.sources.walk import Walk
from vidray.storage.versions import local_version

_FILES_PER_TASK = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalWalk(Walk):
    """The listing of a local folder. Links to folders are followed, but never round in a circle."""

    def start(self) -> None:
        self.tasks.spawn(self._list_folder, self.folder.path, "", frozenset())

    def _list_folder(self, folder: str, relative: str, above: frozenset[tuple[int, int]]) -> None:
        """``above``: device and inode of the folders on the way to this one, so that a link back up ends."""
        paths: list[str] = []
        left: list[str | None] = []
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                return
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = relative + entry.name
                    if _is_folder(entry):
                        if self.keep.enters(name):
                            self.tasks.spawn(self._list_folder, entry.path, f"{name}/", above | {here})
                    elif self.keep.keeps(name):
                        paths.append(entry.path)
                    else:
                        left.append(self.keep.kind_left(name))
        except FileNotFoundError:
            if not relative:  # else it was removed after its parent was listed
                raise
        self.rows.skip(left)
        for start in range(_FILES_PER_TASK, len(paths), _FILES_PER_TASK):
            self.tasks.spawn(self._add, paths[start : start + _FILES_PER_TASK])
        self._add(paths[:_FILES_PER_TASK])

    def _add(self, paths: list[str]) -> None:
        spelled = [spell(path) for path in paths]
        versions = [local_version(path) for path in paths]
        self.rows.add([uri for uri, _ in spelled], versions, paths=[raw for _, raw in spelled])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself: no folder, so it becomes a row that cannot be found
        return False
