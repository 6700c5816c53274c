"""Parses one labelled source: a folder per label, a table (such as a Kinetics CSV file), a list of paths (such as
UCF101's), or tar files. `label_formats` makes tables of the formats that datasets come in.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

from vidray.errors import UsageError
from vidray.sources.label_formats import FORMATS, Listed, is_list, label_text, read_list, read_table
from vidray.sources.label_tars import names_tars, read_tars
from vidray.sources.manifest import list_folder, list_records
from vidray.sources.manifest_file import is_manifest, parse_records
from vidray.sources.patterns import VIDEO_EXTENSIONS
from vidray.sources.splits import split_of
from vidray.sources.tar_shards import TAR, is_tar_uri
from vidray.storage.location import Location
from vidray.storage.redaction import public_uri
from vidray.types import VideoRef

_FILE_COLUMNS = ("file", "filename", "youtube_id")
_START_COLUMNS = ("start_seconds", "time_start", "start")
_END_COLUMNS = ("end_seconds", "time_end", "end")


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
    place: Location,
    *,
    video_root: Location | None = None,
    group_column: str | None = None,
    list_labels: str | None = None,
    label_key: str = "cls",
) -> list[LabelledRow]:
    """The rows of one source, in no particular order.

    Args:
        label_key: what beside a video in a tar file is its label.
        list_labels: ``folder`` or ``number``: which of the two is the label in a list that has both.

    Raises:
        UsageError: it does not exist, holds no video, has a row without a label, or cannot be understood.
        RunError: a store failed while it was listed.
    """
    if is_manifest(place):
        return _read_table(place, video_root or place.parent, group_column, list_labels)
    if names_tars(place):
        return _read_tars(place, label_key, group_column)
    if is_list(place):
        _refuse_group_column(place, group_column)
        return _videos_of(place, read_list(place, list_labels), video_root or place.parent)
    found = list_folder(place, extensions=[TAR]).to_pylist()
    videos = [_ref(row) for row in found if not is_tar_uri(row["uri"])]
    if not videos:
        return _read_tars(place, label_key, group_column)
    _refuse_group_column(place, group_column)
    return _by_folder(place, videos)  # tar files beside them are what they came in


def _refuse_group_column(place: Location, group_column: str | None) -> None:
    if group_column is not None:
        raise UsageError(f"--group-column {group_column}: {place.uri!r} is no table, and has no columns")


def _ref(row: dict[str, Any]) -> VideoRef:
    return VideoRef(**{name: row[name] for name in ("uri", "path", "size_bytes", "etag")})


def _read_tars(place: Location, label_key: str, group_column: str | None) -> list[LabelledRow]:
    return [
        LabelledRow(video=found.video, label=found.label, split=found.split, group=found.group)
        for found in read_tars(place, label_key=label_key, group_key=group_column)
    ]


# -- folders by class -------------------------------------------------------------------------------------------------


def _by_folder(folder: Location, videos: list[VideoRef]) -> list[LabelledRow]:
    root = folder.uri.rstrip("/") + "/"
    parts = [_relative_parts(video.uri, root, folder) for video in videos]
    for video, names in zip(videos, parts, strict=True):
        if len(names) < 2:
            raise UsageError(f"{video.uri} lies in no folder that names its label; expected {root}<label>/<video>")
    own_split = split_of(root.rstrip("/").rpartition("/")[2])
    tops = {names[0] for names in parts}
    has_splits = all(split_of(top) for top in tops) and any(split_of(top) == "train" for top in tops)
    if not has_splits:
        _check_no_splits(root, parts)
    return [_folder_row(video, names, own_split, has_splits) for video, names in zip(videos, parts, strict=True)]


def _check_no_splits(root: str, parts: list[list[str]]) -> None:
    """Raises UsageError for train/LABEL/VIDEO beside folders of another kind: train would become a label."""
    splits = sorted({names[0] for names in parts if split_of(names[0]) and len(names) > 2})
    others = sorted({names[0] for names in parts if not split_of(names[0])})
    if splits and others:
        raise UsageError(
            f"{root} holds {', '.join(f'{name}/' for name in splits)} with folders below, beside "
            f"{', '.join(f'{name}/' for name in others[:5])}: are these splits or labels? Expected "
            f"{root}<label>/<video>, or {root}train/<label>/<video> with nothing but train, val and test beside it. "
            f"Move the others away, or give the splits one by one: --source {root}train {root}val"
        )


def _relative_parts(uri: str, root: str, folder: Location) -> list[str]:
    names = uri.removeprefix(root).split("/")
    return [unquote(name) for name in names] if folder.kind == "http" else names


def _folder_row(video: VideoRef, names: list[str], own_split: str | None, has_splits: bool) -> LabelledRow:
    if has_splits and len(names) < 3:
        raise UsageError(f"{video.uri} lies in no folder that names its label; expected {names[0]}/<label>/<video>")
    split, label = (split_of(names[0]), names[1]) if has_splits else (own_split, names[0])
    return LabelledRow(video=video, label=label_text(label, f"the folder of {video.uri}"), split=split)


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _TableVideo:
    """The video that a row of a table names."""

    video: VideoRef
    group: str | None = None
    is_cut: bool = False
    """True if the file was cut to the row's times, so that they do not apply to it any more."""


def _read_table(
    table: Location, video_root: Location, group_column: str | None, list_labels: str | None
) -> list[LabelledRow]:
    rows = read_table(table, list_labels)
    if isinstance(rows, Listed):
        return _videos_of(table, rows, video_root)
    if not rows:
        raise UsageError(f"no row in {table.uri}")
    columns = {name for row in rows for name in row}
    if group_column is not None and group_column not in columns:
        raise UsageError(f"--group-column {group_column}: {table.uri} has no such column, only {_join(columns)}")
    file_column = next((name for name in _FILE_COLUMNS if name in columns), None)
    if "label" not in columns or ("uri" not in columns and file_column is None):
        raise UsageError(
            f"{table.uri} needs a column 'label', and 'uri' or one of {', '.join(_FILE_COLUMNS)}; "
            f"found {_join(columns)}. {FORMATS}"
        )
    if "uri" in columns:
        videos = _videos_by_uri(table, rows)
    else:
        index = VideoIndex(video_root)
        videos = [_video_by_file(index, table, number, row, file_column or "") for number, row in enumerate(rows, 1)]
        _check_found(table, index, [found.video for found in videos])
    return [
        _table_row(table, number, row, group_column, video)
        for number, (row, video) in enumerate(zip(rows, videos, strict=True), 1)
    ]


def _videos_by_uri(table: Location, rows: list[dict[str, Any]]) -> list[_TableVideo]:
    records = list(parse_records(table, rows))
    listed = {row["uri"]: _ref(row) for row in list_records(table, iter(records)).to_pylist()}
    return [_TableVideo(video=listed[public_uri(record.place.uri)]) for record in records]


def _video_by_file(
    index: VideoIndex, table: Location, number: int, row: dict[str, Any], file_column: str
) -> _TableVideo:
    """The video of a row with a file name or a YouTube id. Kinetics names files after the id, and cut ones after the
    clip's times too; clips of one YouTube video are one group."""
    name = str(row.get(file_column) or "").strip()
    if not name:
        _refuse(table, number, f"no {file_column}")
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
    label = label_text(row.get("label"), f"row {number} of {table.uri}")
    split_text = str(row.get("split") or "")
    split = split_of(split_text) if split_text else None
    if split_text and split is None:
        _refuse(table, number, f"split is {split_text!r}, allowed are train, val and test")
    start, end = (None, None) if found.is_cut else _times(table, number, row)
    return LabelledRow(
        video=found.video,
        label=label,
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


# -- lists ------------------------------------------------------------------------------------------------------------


def _videos_of(place: Location, listed: Listed, video_root: Location) -> list[LabelledRow]:
    index = VideoIndex(video_root)
    rows = [LabelledRow(video=index.find(row.path), label=row.label, split=row.split) for row in listed.rows]
    _check_found(place, index, [row.video for row in rows])
    return rows


def _check_found(place: Location, index: VideoIndex, videos: list[VideoRef]) -> None:
    """Raises UsageError if not one of the videos is there: a single one may be missing, all of them lie elsewhere."""
    if videos and all(video.etag is None for video in videos):
        raise UsageError(
            f"none of the {len(videos)} videos of {place.uri} is in {index.root}, such as {videos[0].uri}; "
            "--video-root FOLDER names the folder that they are in"
        )


class VideoIndex:
    """The videos below a folder, found by name: one listing instead of a request per video."""

    def __init__(self, folder: Location) -> None:
        """Raises UsageError if the folder holds no video."""
        self.root = folder.uri.rstrip("/") + "/"
        self._by_stem: dict[str, list[VideoRef]] = {}
        try:
            table = list_folder(folder)
        except UsageError as error:
            raise UsageError(f"{error}; --video-root FOLDER names the folder that the videos are in") from error
        for row in table.to_pylist():
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
        return found or VideoRef(uri=self.root + name.lstrip("/"))


def _stem(uri: str) -> str:
    name = uri.rpartition("/")[2]
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS else name
