"""The formats that labelled datasets come in, made into rows: lists of paths (UCF101, HMDB51, ``path N``), CSV files
without a header (Kinetics), and Something-Something's JSON. Also what a label is.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vidray.errors import UsageError
from vidray.sources.manifest_file import extension_of, read_bytes, read_rows
from vidray.sources.patterns import VIDEO_EXTENSIONS
from vidray.sources.splits import split_of
from vidray.storage.location import Location

FORMATS = (
    "Read are: a folder per label; a table (.csv, .jsonl, .parquet) with a header; Kinetics' CSV, also without its "
    "header; lists (.txt, .csv) of PATH LABEL-NUMBER; UCF101's and HMDB51's split files; Something-Something's JSON"
)
_SPLIT_IN_NAME = re.compile(
    r"(?<![a-z])(train|test|val)(?:ing|idation)?(?:list|split)?\d*(?![a-z])[^/]*$", re.IGNORECASE
)
_HMDB51_NAME = re.compile(r"(?:^|/)([^/]+)_test_split\d+\.txt$")
_HMDB51_SPLITS = {"1": "train", "2": "test"}  # 0: not in this split
_KINETICS = ("label", "youtube_id", "time_start", "time_end", "split")
_WHOLE = re.compile(r"[+-]?\d+\.0+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedVideo:
    """A line of a list."""

    path: str
    """Below the videos' folder."""
    label: str
    split: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """What a list names, all of it."""

    rows: Sequence[ListedVideo]


def label_text(value: Any, where: str) -> str:
    """A label as it is stored, however its source wrote it: without spaces around it, in Unicode's composed form (NFC),
    integers as integers (``1.0`` is ``1``).

    Args:
        where: the row, for the message.

    Raises:
        UsageError: there is none, or it is no single value.
    """
    if isinstance(value, list | dict | tuple):
        raise UsageError(f"{where}: column 'label' is {value!r}; allowed is one label")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise UsageError(f"{where}: no label")
    text = unicodedata.normalize("NFC", str(value)).strip()
    if not text:
        raise UsageError(f"{where}: no label")
    return str(int(float(text))) if _WHOLE.fullmatch(text) else text


def is_list(place: Location) -> bool:
    """True for a list of paths (``.txt``) and for Something-Something's JSON, by their names."""
    if place.kind == "local" and os.path.isdir(place.path):
        return False
    return extension_of(place) in (".txt", ".json")


def read_list(place: Location, list_labels: str | None = None) -> Listed:
    """The rows of a list.

    Args:
        list_labels: ``folder`` or ``number``: which of the two is the label, where lines have both.

    Raises:
        UsageError: it does not exist, cannot be understood, or has folders and numbers that contradict each other.
    """
    text = _text(place, read_bytes(place))
    if extension_of(place) == ".json":
        return _something_something(place, text)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if (match := _HMDB51_NAME.search(place.path)) and all(re.fullmatch(r".*\S\s+[012]", line) for _, line in lines):
        return _hmdb51(lines, label=match[1])
    return _paths_and_numbers(place, [(number, *_parted(line)) for number, line in lines], list_labels)


def read_table(table: Location, list_labels: str | None = None) -> list[dict[str, Any]] | Listed:
    """The rows of a table; of a CSV file without a header as if it had one, or as a list.

    Raises:
        UsageError: as `read_rows` and `read_list` do.
    """
    if extension_of(table) != ".csv":
        return list(read_rows(table))
    data = read_bytes(table)
    rows = [row for row in csv.reader(io.StringIO(_text(table, data), newline="")) if row]
    head = rows[0] if rows else []
    if len(head) == len(_KINETICS) and head[2].isdigit() and head[3].isdigit() and split_of(head[4]):
        return list(read_rows(table, names=_KINETICS, data=data))
    if 0 < len(head) <= 2 and _is_path(_parted(" ".join(head))[0]):
        lines = [(number, *_parted(" ".join(row).strip())) for number, row in enumerate(rows, 1)]
        return _paths_and_numbers(table, lines, list_labels)
    if head[:2] == ["id", "subject"] and "actions" in head:
        raise UsageError(f"{table.uri} is of Charades, whose videos have several labels each. {FORMATS}")
    return list(read_rows(table, data=data))


def _text(place: Location, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {place.uri}: {error}. {FORMATS}") from error


def _parted(line: str) -> tuple[str, str | None]:
    """The path of a line and the number behind it, if there is one."""
    match = re.fullmatch(r"(.*\S)\s+(\d+)", line)
    return (match[1], match[2]) if match else (line, None)


def _is_path(text: str) -> bool:
    return os.path.splitext(text)[1].lower() in VIDEO_EXTENSIONS


def _split_of_name(place: Location) -> str | None:
    match = _SPLIT_IN_NAME.search(place.path.rpartition("/")[2].rpartition(".")[0])
    return split_of(match[1]) if match else None


def _paths_and_numbers(
    place: Location, lines: Iterable[tuple[int, str, str | None]], list_labels: str | None
) -> Listed:
    """Lines like ``Archery/v_Archery_g08_c01.avi 3``: the label is the folder, if each folder has one number and each
    number one folder; else the number, if all lie in one folder or none."""
    lines = list(lines)
    folders = [path.rpartition("/")[0].rpartition("/")[2] for _, path, _ in lines]
    numbers = [number for _, _, number in lines]
    if not lines:
        raise UsageError(f"no line in {place.uri}")
    by = list_labels or _which(place, folders, numbers)
    labels = folders if by == "folder" else numbers
    split = _split_of_name(place)
    rows = []
    for (number, path, _), label in zip(lines, labels, strict=True):
        if not label:
            expected = "<label>/<video>" if by == "folder" else "<video> <number>"
            raise UsageError(f"row {number} of {place.uri}: expected {expected}, got {path!r}")
        rows.append(ListedVideo(path=path, label=label_text(label, f"row {number} of {place.uri}"), split=split))
    return Listed(rows=rows)


def _which(place: Location, folders: list[str], numbers: list[str | None]) -> str:
    pairs = {(folder, number) for folder, number in zip(folders, numbers, strict=True) if number is not None}
    if not pairs:
        return "folder"
    if len({folder for folder, _ in pairs}) == len(pairs) == len({number for _, number in pairs}):
        return "folder" if all(folders) else "number"
    if len(set(folders)) == 1 and None not in numbers:
        return "number"
    first: dict[str, tuple[str, str]] = {}
    for folder, number in sorted(pairs):
        for key in (f"folder {folder}", f"number {number}"):
            if key in first:
                before = first[key]
                raise UsageError(
                    f"{place.uri}: folders and numbers contradict each other, such as {before[0]}/ with {before[1]} "
                    f"and {folder}/ with {number}; say which is the label: --list-labels folder or number"
                )
            first[key] = (folder, number)
    return "folder"


def _hmdb51(lines: list[tuple[int, str]], *, label: str) -> Listed:
    """``brush_hair_test_split1.txt``: lines of a file name and 1 (trains), 2 (tests) or 0 (neither)."""
    parted = [_parted(line) for _, line in lines]
    return Listed(
        rows=[
            ListedVideo(path=path, label=label, split=_HMDB51_SPLITS[code])
            for path, code in parted
            if code is not None and code in _HMDB51_SPLITS
        ]
    )


def _something_something(place: Location, text: str) -> Listed:
    """A list of ``{"id": "78687", "template": "Putting [something] on [something]"}``; the label is the template
    without its brackets, as in the dataset's own list of labels."""
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"cannot read {place.uri}: {error}. {FORMATS}") from error
    if not isinstance(records, list) or not all(isinstance(r, dict) and "id" in r for r in records) or not records:
        raise UsageError(f"{place.uri} is no list of objects with 'id' and 'template'. {FORMATS}")
    split = _split_of_name(place)
    rows = []
    for number, record in enumerate(records, 1):
        template = str(record.get("template") or "").translate({ord("["): None, ord("]"): None})
        label = label_text(template or None, f"entry {number} of {place.uri}")
        rows.append(ListedVideo(path=str(record["id"]), label=label, split=split))
    return Listed(rows=rows)
