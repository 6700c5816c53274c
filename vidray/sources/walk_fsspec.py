"""Lists a folder on any other file system (GCS, Azure, web pages of links, ...) with fsspec's ``ls``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidray.errors import RunError
from vidray.sources.rows import spawn_lookups
from vidray.sources.walk import Walk
from vidray.storage.retry import with_retries
from vidray.storage.versions import etag_of


@dataclass(frozen=True, kw_only=True, slots=True)
class FsspecWalk(Walk):
    """The listing of a folder that fsspec can list: a task per folder."""

    def start(self) -> None:
        self.tasks.spawn(self._list_folder, self.folder.path, "")

    def _list_folder(self, folder: str, relative: str) -> None:
        above = folder.rstrip("/") + "/"
        kept: list[dict[str, Any]] = []
        for entry in with_retries(lambda: self._entries(folder), what=self.folder.uri_of(folder)):
            name = relative + entry["name"].rstrip("/")[len(above) :]
            if name == relative or not entry["name"].startswith(above):
                continue  # the folder itself, as a marker object or a link to it
            if entry["type"] == "directory":
                if self.keep.enters(name):
                    self.tasks.spawn(self._list_folder, entry["name"], f"{name}/")
            elif self.keep.keeps(name):
                kept.append(entry)
            else:
                self.rows.skip([self.keep.kind_left(name)])
        self._add(kept)

    def _add(self, entries: list[dict[str, Any]]) -> None:
        if self.folder.kind == "http":  # a page of links tells neither sizes nor etags
            spawn_lookups([self.folder.at(entry["name"]) for entry in entries], self.rows, self.tasks)
        else:
            versions = [(entry.get("size"), etag_of(entry)) for entry in entries]
            self.rows.add([self.folder.uri_of(entry["name"]) for entry in entries], versions)

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        self.folder.fs.invalidate_cache()
        try:
            return self.folder.fs.ls(folder, detail=True)
        except NotADirectoryError as error:
            raise RunError(f"{self.folder.uri_of(folder)} was a folder and is none now") from error
