"""Which files count as videos: in a folder by their extension, with a glob all that match."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Protocol

from fsspec.utils import glob_translate

from vidray.errors import UsageError

VIDEO_EXTENSIONS = frozenset(
    {".3g2", ".3gp", ".3gpp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2ts", ".m2v", ".m4v", ".mj2"}
    | {".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts"}
    | {".vob", ".webm", ".wmv", ".xvid", ".y4m"}
)
"""Extensions that count as videos in a folder, in any case. A glob, a manifest or a single URI takes any name."""

_HIDDEN = re.compile(r"(?:^|/)(?:\.(?!\.?(?:/|$))|(?:_runs|_train)/)")
"""A name that starts with a dot (other than ``.`` and ``..``, which keys may hold), or a folder that vidray writes."""


_MAX_EXTENSION = 12
"""Characters of an extension that is worth a count of its own."""


_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_NUMBERED = 1_000_000


def expand_ranges(source: str) -> list[str]:
    """Itself, or what its ranges stand for: ``{00..99}``, as wide as the first number is written.

    Raises:
        UsageError: a range goes down, or stands for too many.
    """
    found = _NUMBERS.search(source)
    if found is None:
        return [source]
    first, last = int(found[1]), int(found[2])
    rest = expand_ranges(source[found.end() :])
    if not first <= last < first + _MAX_NUMBERED // len(rest):
        raise UsageError(f"cannot understand {found[0]!r} in {source!r}: a range goes up, to {_MAX_NUMBERED:,} names")
    numbers = (f"{number:0{len(found[1])}d}" for number in range(first, last + 1))
    return [source[: found.start()] + number + end for number in numbers for end in rest]


class FileFilter(Protocol):
    """Which files of a walk count. Paths are relative to where the walk starts, with ``/`` between parts."""

    def keeps(self, path: str) -> bool:
        """True if this file is a row."""

    def enters(self, path: str) -> bool:
        """True if files below this folder may be rows."""

    def kind_left(self, path: str) -> str | None:
        """What a file that is not kept is counted under for the user; None if it was not asked for."""


class VideosOnly:
    """Keeps visible files with a video's extension.

    Args:
        more: extensions that count too, such as ``.bin``.
    """

    def __init__(self, more: Collection[str] = ()) -> None:
        self._endings = (*VIDEO_EXTENSIONS, *more)

    def keeps(self, path: str) -> bool:
        """True for ``a/b.MP4``."""
        return path.lower().endswith(self._endings) and _HIDDEN.search(path) is None

    def enters(self, path: str) -> bool:
        """False for hidden folders and for those of an output."""
        return _HIDDEN.search(f"{path}/") is None

    def kind_left(self, path: str) -> str | None:
        """Its extension, unless it is hidden."""
        if _HIDDEN.search(path) is not None:
            return None
        extension = os.path.splitext(path)[1].lower()
        if len(extension) > _MAX_EXTENSION or not extension.isprintable():  # a hash, or bytes that are not UTF-8
            return "of odd names"
        return extension or "without extension"

    def __str__(self) -> str:
        return f"names that end in {' '.join(sorted(self._endings))}"


class GlobMatches:
    """Keeps every file whose path matches a glob, and enters only folders on the way to one."""

    def __init__(self, pattern: str) -> None:
        parts = pattern.split("/")
        self._whole = re.compile(glob_translate(pattern))
        depth = parts.index("**") if "**" in parts else len(parts) - 1
        self._enters_deeper = "**" in parts
        self._folders = [re.compile(glob_translate("/".join(parts[: i + 1]))) for i in range(depth)]

    def keeps(self, path: str) -> bool:
        """True if the pattern matches all of the path."""
        return self._whole.match(path) is not None

    def enters(self, path: str) -> bool:
        """True if the pattern can match something below this folder."""
        at = path.count("/")
        if at >= len(self._folders):
            return self._enters_deeper
        return self._folders[at].match(path) is not None

    def kind_left(self, path: str) -> str | None:
        """None: the pattern says what is wanted."""
        return None
