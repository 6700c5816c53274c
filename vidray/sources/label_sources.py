"""Parses one labelled source: a folder per label, a table (such as a Kinetics CSV file), or one of UCF101's lists."""

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
from vidray.sources.manifest import list_folder, list_records
from vidray.sources.manifest_file import is_manifest, parse_records, read_bytes, read_rows
from vidray.sources.patterns import VIDEO_EXTENSIONS
from vidray.sources.splits import split_of
from vidray.storage.location import Location
from vidray.types import VideoRef

_FILE_COLUMNS = ("file", "filename", "youtube_id")
_START_COLUMNS = ("start_seconds", "time_start", "start")
_END_COLUMNS = ("end_seconds", "time_end", "end")
_LIST_NAME = re.compile(r"(train|test|val)[^/]*\.txt$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledRow:
    """One labelled clip, as its source describes it."""

    video: VideoRef
    label: str
    split: str | None = None
    """train, val or test; None: the source does not say."""
    group: str | None = None
    """None: the source does not say."""
    start_seconds: float | None = None
    """None: from the start of the file."""
    end_seconds: float | None = None
    """None: to its end."""

    @property
    def key(self) -> tuple[str, float, float]:
        """What makes two rows the same clip; also the order of rows."""
        end = math.inf if self.end_seconds is None else self.end_seconds
        return self.video.uri, self.start_seconds or 0.0, end

    def with_split(self, split: str) -> LabelledRow:
        """The same clip in another split."""
        return dataclasses.replace(self, split=split)

    def with_group(self, group: str) -> LabelledRow:
        """The same clip in another group."""
        return dataclasses.replace(self, group=group)


def read_source(
    place: Location, *, video_root: Location | None = None, group_column: str | None = None
) -> list[LabelledRow]:
    """The rows of one source, in no particular order.

    Raises:
        UsageError: it does not exist, holds no video, has a row without a label, or cannot be understood.
        RunError: a store failed while it was listed.
    """
    if is_manifest(place):
        return _read_table(place, video_root or place.parent, group_column)
    if group_column is not None:
        raise UsageError(f"--group-column {group_column}: {place.uri!r} is no table, and has no columns")
    if _LIST_NAME.search(place.path) and not (place.kind == "local" and os.path.isdir(place.path)):
        return _read_list(place, video_root or place.parent)
    return _read_folder(place)


def _ref(row: dict[str, Any]) -> VideoRef:
    return VideoRef(**{name: row[name] for name in ("uri", "path", "size_bytes", "etag")})


# -- folders by class -------------------------------------------------------------------------------------------------


def _read_folder(folder: Location) -> list[LabelledRow]:
    root = folder.uri.rstrip("/") + "/"
    videos = [_ref(row) for row in list_folder(folder).to_pylist()]
    parts = [_relative_parts(video.uri, root, folder) for video in videos]
    for video, names in zip(videos, parts, strict=True):
        if len(names) < 2:
            raise UsageError(f"{video.uri} lies in no folder that names its label; expected {root}<label>/<video>")
    own_split = split_of(root.rstrip("/").rpartition("/")[2])
    tops = {names[0] for names in parts}
    has_splits = all(split_of(top) for top in tops) and any(split_of(top) == "train" for top in tops)
    return [_folder_row(video, names, own_split, has_splits) for video, names in zip(videos, parts, strict=True)]


def _relative_parts(uri: str, root: str, folder: Location) -> list[str]:
    names = uri.removeprefix(root).split("/")
    return [unquote(name) for name in names] if folder.kind == "http" else names


def _folder_row(video: VideoRef, names: list[str], own_split: str | None, has_splits: bool) -> LabelledRow:
    if has_splits and len(names) < 3:
        raise UsageError(f"{video.uri} lies in no folder that names its label; expected {names[0]}/<label>/<video>")
    split, label = (split_of(names[0]), names[1]) if has_splits else (own_split, names[0])
    return LabelledRow(video=video, label=label, split=split)


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _TableVideo:
    """The video that a row of a table names."""

    video: VideoRef
    group: str | None = None
    is_cut: bool = False
    """True if the file was cut to the row's times, so that they do not apply to it any more."""


def _read_table(table: Location, video_root: Location, group_column: str | None) -> list[LabelledRow]:
    rows = list(read_rows(table))
    if not rows:
        raise UsageError(f"no row in {table.uri}")
    columns = set(rows[0])
    if group_column is not None and group_column not in columns:
        raise UsageError(f"--group-column {group_column}: {table.uri} has no such column, only {_join(columns)}")
    file_column = next((name for name in _FILE_COLUMNS if name in columns), None)
    if "label" not in columns or ("uri" not in columns and file_column is None):
        raise UsageError(
            f"{table.uri} needs a column 'label', and 'uri' or one of {', '.join(_FILE_COLUMNS)}; "
            f"found {_join(columns)}"
        )
    if "uri" in columns:
        videos = _videos_by_uri(table, rows)
    else:
        index = VideoIndex(video_root)
        videos = [_video_by_file(index, row, file_column or "") for row in rows]
    return [
        _table_row(table, number, row, group_column, video)
        for number, (row, video) in enumerate(zip(rows, videos, strict=True), 1)
    ]


def _videos_by_uri(table: Location, rows: list[dict[str, Any]]) -> list[_TableVideo]:
    records = list(parse_records(table, rows))
    listed = {row["uri"]: _ref(row) for row in list_records(table, iter(records)).to_pylist()}
    return [_TableVideo(video=listed[record.place.uri]) for record in records]


def _video_by_file(index: VideoIndex, row: dict[str, Any], file_column: str) -> _TableVideo:
    """The video of a row with a file name or a YouTube id. Kinetics names files after the id, and cut ones after the
    clip's times too; clips of one YouTube video are one group."""
    name = str(row[file_column] or "")
    if file_column != "youtube_id":
        return _TableVideo(video=index.find(name))
    start, end = (str(next((row[n] for n in names if row.get(n)), 0)) for names in (_START_COLUMNS, _END_COLUMNS))
    cut = None
    if start.replace(".", "", 1).isdigit() and end.replace(".", "", 1).isdigit():
        cut = index.get(f"{name}_{int(float(start)):06d}_{int(float(end)):06d}")
    return _TableVideo(video=cut or index.find(name), group=name, is_cut=cut is not None)


def _table_row(
    table: Location, number: int, row: dict[str, Any], group_column: str | None, found: _TableVideo
) -> LabelledRow:
    label = row["label"]
    if label is None or not str(label).strip():
        _refuse(table, number, "no label")
    split_text = str(row.get("split") or "")
    split = split_of(split_text) if split_text else None
    if split_text and split is None:
        _refuse(table, number, f"split is {split_text!r}, allowed are train, val and test")
    start, end = (None, None) if found.is_cut else _times(table, number, row)
    return LabelledRow(
        video=found.video,
        label=str(label),
        split=split,
        group=_group(row, group_column, found),
        start_seconds=start,
        end_seconds=end,
    )


def _group(row: dict[str, Any], group_column: str | None, found: _TableVideo) -> str | None:
    if group_column is not None:
        return str(row[group_column])
    group = found.group or row.get("group")
    return str(group) if group else None


def _times(table: Location, number: int, row: dict[str, Any]) -> tuple[float | None, float | None]:
    start, end = (_seconds(table, number, row, names) for names in (_START_COLUMNS, _END_COLUMNS))
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        _refuse(table, number, f"a clip must end after it starts, got {start or 0.0} to {end} seconds")
    return start, end


def _seconds(table: Location, number: int, row: dict[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = row.get(name)
        if value is None or value == "":
            continue
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = math.nan
        if not math.isfinite(seconds):
            _refuse(table, number, f"{name} must be a number of seconds, got {value!r}")
        return seconds
    return None


def _refuse(table: Location, number: int, why: str) -> NoReturn:
    raise UsageError(f"row {number} of {table.uri}: {why}")


def _join(columns: set[str]) -> str:
    return ", ".join(sorted(map(str, columns)))


# -- UCF101's lists ---------------------------------------------------------------------------------------------------


def _read_list(place: Location, video_root: Location) -> list[LabelledRow]:
    """Lines like ``Archery/v_Archery_g08_c01.avi 3``: a path below the videos' folder and, in training lists, a class
    number, which the folder's name makes superfluous."""
    index = VideoIndex(video_root)
    name = _LIST_NAME.search(place.path)
    split = split_of(name[1]) if name else None
    return [
        LabelledRow(video=index.find(path), label=label, split=split)
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
    """The videos below a folder, found by name: one listing instead of a request per video."""

    def __init__(self, folder: Location) -> None:
        """Raises UsageError if the folder holds no video."""
        self._root = folder.uri.rstrip("/") + "/"
        self._by_stem: dict[str, list[VideoRef]] = {}
        for row in list_folder(folder).to_pylist():
            self._by_stem.setdefault(_stem(row["uri"]), []).append(_ref(row))

    def get(self, name: str) -> VideoRef | None:
        """The video whose URI ends in ``name``, with or without an extension; None if there is none.

        Raises:
            UsageError: several have this name.
        """
        wanted = name.strip("/")
        has_extension = os.path.splitext(wanted)[1].lower() in VIDEO_EXTENSIONS
        matches = [
            video
            for video in self._by_stem.get(_stem(wanted), ())
            if ("/" + (video.uri if has_extension else os.path.splitext(video.uri)[0])).endswith("/" + wanted)
        ]
        if len(matches) > 1:
            both = " and ".join(video.uri for video in matches[:2])
            raise UsageError(f"{name!r} may be {both}: name it with its folder, or give a narrower --video-root")
        return matches[0] if matches else None

    def find(self, name: str) -> VideoRef:
        """As `get`; a missing video gets the URI where it was expected, so that it is counted as a bad video."""
        found = self.get(name) if name else None
        return found or VideoRef(uri=self._root + name.lstrip("/"))


def _stem(uri: str) -> str:
    name = uri.rpartition("/")[2]
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS else name
