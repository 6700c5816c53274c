"""Reads one labelled source, whatever its form: a folder of folders, a table, or one of UCF101's lists."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

from vidray.errors import UsageError
from vidray.sources.manifest import VIDEO_EXTENSIONS, list_sources
from vidray.sources.manifest_file import is_manifest, read_bytes, read_rows, resolve
from vidray.sources.splits import split_of
from vidray.storage.location import Location, locate

_FILE_COLUMNS = ("file", "filename", "youtube_id")
_START_COLUMNS = ("start_seconds", "time_start", "start")
_END_COLUMNS = ("end_seconds", "time_end", "end")
_LIST_NAME = re.compile(r"(train|test|val)[^/]*\.txt$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledRow:
    """One labelled clip, as its source tells it."""

    uri: str
    path: bytes | None = None
    size_bytes: int | None = None
    etag: str | None = None
    label: str
    split: str | None = None
    """train, val or test; None: the source does not say."""
    group: str | None = None
    """None: the source does not say."""
    start_seconds: float | None = None
    end_seconds: float | None = None

    @property
    def key(self) -> tuple[str, float, float]:
        """What makes two rows the same clip; also the order of rows."""
        end = math.inf if self.end_seconds is None else self.end_seconds
        return self.uri, self.start_seconds or 0.0, end

    def with_split(self, split: str) -> LabelledRow:
        """The same clip in another part."""
        return dataclasses.replace(self, split=split)

    def with_group(self, group: str) -> LabelledRow:
        """The same clip in another group."""
        return dataclasses.replace(self, group=group)


def read_source(source: str, *, video_root: str | None = None, group_column: str | None = None) -> list[LabelledRow]:
    """The rows of one source, in no particular order.

    Raises:
        UsageError: it does not exist, holds no video, has a row without a label, or cannot be understood.
        RunError: a store failed while it was listed.
    """
    place = locate(source)
    if is_manifest(place):
        return _read_table(place, video_root, group_column)
    if group_column is not None:
        raise UsageError(f"--group-column {group_column}: {source!r} is no table, and has no columns")
    if _LIST_NAME.search(place.path) and not (place.kind == "local" and os.path.isdir(place.path)):
        return _read_list(place, video_root)
    return _read_folder(place)


# -- folders by class -------------------------------------------------------------------------------------------------


def _read_folder(place: Location) -> list[LabelledRow]:
    root = place.uri.rstrip("/") + "/"
    listed = list_sources([root]).to_pylist()
    parts = [_relative_parts(row["uri"], root, place) for row in listed]
    for row, names in zip(listed, parts, strict=True):
        if len(names) < 2:
            raise UsageError(f"{row['uri']} lies in no folder that names its label; expected {root}<label>/<video>")
    own_split = split_of(root.rstrip("/").rpartition("/")[2])
    tops = {names[0] for names in parts}
    has_splits = all(split_of(top) for top in tops) and any(split_of(top) == "train" for top in tops)
    return [_folder_row(row, names, own_split, has_splits) for row, names in zip(listed, parts, strict=True)]


def _relative_parts(uri: str, root: str, place: Location) -> list[str]:
    names = uri.removeprefix(root).split("/")
    return [unquote(name) for name in names] if place.kind == "http" else names


def _folder_row(row: dict[str, Any], names: list[str], own_split: str | None, has_splits: bool) -> LabelledRow:
    if has_splits and len(names) < 3:
        raise UsageError(f"{row['uri']} lies in no folder that names its label; expected {names[0]}/<label>/<video>")
    split, label = (split_of(names[0]), names[1]) if has_splits else (own_split, names[0])
    return LabelledRow(**_version(row), label=label, split=split)


def _version(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("uri", "path", "size_bytes", "etag")}


# -- tables -----------------------------------------------------------------------------------------------------------


def _read_table(place: Location, video_root: str | None, group_column: str | None) -> list[LabelledRow]:
    rows = list(read_rows(place))
    if not rows:
        raise UsageError(f"no row in {place.uri}")
    columns = set(rows[0])
    if group_column is not None and group_column not in columns:
        raise UsageError(f"--group-column {group_column}: {place.uri} has no such column, only {_named(columns)}")
    file_column = next((name for name in _FILE_COLUMNS if name in columns), None)
    if "label" not in columns or ("uri" not in columns and file_column is None):
        raise UsageError(
            f"{place.uri} needs a column 'label', and 'uri' or one of {', '.join(_FILE_COLUMNS)}; "
            f"found {_named(columns)}"
        )
    if "uri" in columns:
        return _rows_with_uris(place, rows, group_column)
    assert file_column is not None
    videos = VideoIndex(video_root or _folder_of(place))
    return [
        _table_row(place, number, row, group_column, **_located(videos, row, file_column))
        for number, row in enumerate(rows, 1)
    ]


def _rows_with_uris(place: Location, rows: list[dict[str, Any]], group_column: str | None) -> list[LabelledRow]:
    uris = [locate(resolve(place, str(row["uri"]))).uri if row["uri"] else None for row in rows]
    listed = {row["uri"]: _version(row) for row in list_sources([place.uri]).to_pylist()}
    return [
        _table_row(place, number, row, group_column, **listed[uri]) if uri else _refuse(place, number, "no uri")
        for number, (uri, row) in enumerate(zip(uris, rows, strict=True), 1)
    ]


def _table_row(
    place: Location, number: int, row: dict[str, Any], group_column: str | None, **where: Any
) -> LabelledRow:
    label = row["label"]
    if label is None or not str(label).strip():
        _refuse(place, number, "no label")
    split_text = str(row.get("split") or "")
    split = split_of(split_text) if split_text else None
    if split_text and split is None:
        _refuse(place, number, f"split is {split_text!r}, allowed are train, val and test")
    group = where.pop("group", None) if group_column is None else str(row[group_column])
    times = {
        "start_seconds": where.pop("start_seconds", _seconds(place, number, row, _START_COLUMNS)),
        "end_seconds": where.pop("end_seconds", _seconds(place, number, row, _END_COLUMNS)),
    }
    start, end = times["start_seconds"] or 0.0, times["end_seconds"]
    if start < 0 or (end is not None and end <= start):
        _refuse(place, number, f"a clip must end after it starts, got {start} to {end} seconds")
    if group is None and group_column is None and row.get("group"):
        group = str(row["group"])
    return LabelledRow(**where, label=str(label), split=split, group=group, **times)


def _seconds(place: Location, number: int, row: dict[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = row.get(name)
        if value is None or value == "":
            continue
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = math.nan
        if not math.isfinite(seconds):
            _refuse(place, number, f"{name} must be a number of seconds, got {value!r}")
        return seconds
    return None


def _refuse(place: Location, number: int, why: str) -> NoReturn:
    raise UsageError(f"row {number} of {place.uri}: {why}")


def _named(columns: set[str]) -> str:
    return ", ".join(sorted(map(str, columns)))


def _folder_of(place: Location) -> str:
    return place.uri_of(place.path.rpartition("/")[0] or "/")


def _located(videos: VideoIndex, row: dict[str, Any], file_column: str) -> dict[str, Any]:
    """Where the video of a Kinetics row is. A file named after the clip's times was cut to them already, so that no
    time applies to it any more; clips of one YouTube video are one group."""
    name = str(row[file_column] or "")
    if file_column != "youtube_id":
        return videos.find(name)
    start, end = (str(next((row[n] for n in names if row.get(n)), 0)) for names in (_START_COLUMNS, _END_COLUMNS))
    found = None
    if start.replace(".", "", 1).isdigit() and end.replace(".", "", 1).isdigit():
        found = videos.get(f"{name}_{int(float(start)):06d}_{int(float(end)):06d}")
    if found is not None:
        return {**found, "group": name, "start_seconds": None, "end_seconds": None}
    return {**videos.find(name), "group": name}


# -- UCF101's lists ---------------------------------------------------------------------------------------------------


def _read_list(place: Location, video_root: str | None) -> list[LabelledRow]:
    """Lines like ``Archery/v_Archery_g08_c01.avi 3``: a path below the videos' folder and, in training lists, a class
    number, which says the same as the folder."""
    videos = VideoIndex(video_root or _folder_of(place))
    name = _LIST_NAME.search(place.path)
    split = split_of(name[1]) if name else None
    return [
        LabelledRow(**videos.find(path), label=label, split=split)
        for path, label in _list_lines(place, read_bytes(place).decode("utf-8-sig"))
    ]


def _list_lines(place: Location, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        path = re.sub(r"\s+\d+\s*$", "", line).strip()
        label = path.rpartition("/")[0].rpartition("/")[2]
        if path and not label:
            _refuse(place, number, f"expected <label>/<video>, got {line.strip()!r}")
        if path:
            yield path, label


class VideoIndex:
    """The videos below a folder, found by name: one listing instead of a question per video."""

    def __init__(self, root: str) -> None:
        """Raises UsageError if the folder holds no video."""
        self._root = root.rstrip("/") + "/"
        self._by_stem: dict[str, list[dict[str, Any]]] = {}
        for row in list_sources([self._root]).to_pylist():
            self._by_stem.setdefault(_stem(row["uri"]), []).append(_version(row))

    def get(self, name: str) -> dict[str, Any] | None:
        """uri, path, size_bytes and etag of the video that ends in ``name``, with or without an extension; None if
        there is none.

        Raises:
            UsageError: several have this name.
        """
        wanted = name.strip("/")
        stem = _stem(wanted)
        has_extension = os.path.splitext(wanted)[1].lower() in VIDEO_EXTENSIONS
        matches = [
            row
            for row in self._by_stem.get(stem, ())
            if ("/" + (row["uri"] if has_extension else os.path.splitext(row["uri"])[0])).endswith("/" + wanted)
        ]
        if len(matches) > 1:
            both = " and ".join(row["uri"] for row in matches[:2])
            raise UsageError(f"{name!r} may be {both}: name it with its folder, or give a narrower --video-root")
        return matches[0] if matches else None

    def find(self, name: str) -> dict[str, Any]:
        """As `get`; what is not there gets the URI where it was expected, so that it is counted as a bad video."""
        found = self.get(name) if name else None
        return found or {"uri": self._root + name.lstrip("/"), "path": None, "size_bytes": None, "etag": None}


def _stem(uri: str) -> str:
    name = uri.rpartition("/")[2]
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS else name
