"""A table for the screen: as wide as it, one line for each row, nothing in a cell that a terminal would obey."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

_MIN_WIDTH = 12
"""Of a column that is cut; what then does not fit is named below the table."""
_GAP = "  "


def format_table(table: pa.Table, *, width: int | None = None) -> str:
    """Head, rule and rows. Numbers stand right; cells that are too wide lose their middle.

    Args:
        width: of the screen, in characters; None: nothing is cut.
    """
    columns = [[clean(name), *map(cell, table[at].to_pylist())] for at, name in enumerate(table.column_names)]
    is_number = [_is_number(field.type) for field in table.schema]
    widths = [max(map(text_width, column)) for column in columns]
    num_shown = len(columns) if width is None else _num_fitting(widths, width)
    widths = widths[:num_shown] if width is None else shrunk(widths[:num_shown], width)
    padded = [
        [_pad(text, wide, right=right) for text in column]
        for column, wide, right in zip(columns, widths, is_number, strict=False)
    ]
    lines = [_GAP.join(row).rstrip() for row in zip(*padded, strict=True)]
    rule = _GAP.join("─" * wide for wide in widths)
    hidden = [column[0] for column in columns[num_shown:]]
    more = [f"and {len(hidden)} columns that do not fit: {', '.join(hidden)}"] if hidden else []
    return "\n".join([*lines[:1], rule, *lines[1:], *more])


def screen_width() -> int | None:
    """Characters in a line of the screen; None: standard output goes elsewhere, and nothing is cut."""
    is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if is_known else None


def cell(value: Any) -> str:
    """A value as one line of text; nothing for null."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return _number(value)
        case datetime.datetime():
            return value.replace(tzinfo=None).isoformat(" ", "seconds")
        case [tuple(), *_]:  # a map
            return cell(dict(value))
        case dict() | list() | tuple():
            return clean(json.dumps(_rounded(value), ensure_ascii=False, default=cell))
        case _:
            return clean(str(value))


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e12 else f"{value:.4g}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(_number(value)) if isinstance(value, float) else value


def clean(text: str) -> str:
    """Without line breaks, control characters and marks that turn the direction of writing: these as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def text_width(text: str) -> int:
    """Columns that a terminal takes for it."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    return 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _num_fitting(widths: Sequence[int], width: int) -> int:
    """How many columns fit, each cut as far as may be; at least one."""
    taken = 0
    for number, wide in enumerate(widths):
        taken += min(wide, _MIN_WIDTH) + (len(_GAP) if number else 0)
        if taken > width and number:
            return number
    return len(widths)


def shrunk(widths: Sequence[int], width: int) -> list[int]:
    """The widths, the widest ones made equal and smaller until all fit into ``width`` with their gaps."""
    room = max(width - len(_GAP) * (len(widths) - 1), 1)
    if sum(widths) <= room:
        return list(widths)
    low, high = 1, max(widths)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(wide, middle) for wide in widths) <= room else (low, middle - 1)
    return [min(wide, low) for wide in widths]


def _pad(text: str, width: int, *, right: bool) -> str:
    if text_width(text) > width:
        text = _without_middle(text, width)
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def _without_middle(text: str, width: int) -> str:
    """Both ends and an ellipsis: the names of files are at the end of a URI."""
    head = _fitting(text, (width - 1) // 3)
    tail = _fitting(text[::-1], width - 1 - text_width(head))[::-1]
    return f"{head}…{tail}"


def _fitting(chars: Iterable[str], width: int) -> str:
    taken, left = [], width
    for char in chars:
        left -= _char_width(char)
        if left < 0:
            break
        taken.append(char)
    return "".join(taken)
