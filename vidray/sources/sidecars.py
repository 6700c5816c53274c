"""What lies beside a video in a tar file and is called as it: ``.json``, ``.cls`` and ``.txt``.

Whatever they hold, they cost bounded memory, and a sidecar that cannot be read costs its own values only.
"""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from vidray.flags import require
from vidray.sources.tar_file import RangedFile

ENDINGS = (".json", ".cls", ".txt")
_TEXTS = ("cls", "txt")
"""Names of the values that are whole files."""
_MAX_BYTES = 1 << 16
"""Of one sidecar."""
_MAX_HELD_BYTES = 1 << 26
"""Of the values of one tar file, with ``_OVERHEAD_BYTES`` for each."""
_OVERHEAD_BYTES = 100
_MAX_COLUMNS = 1_000

Values = dict[str, Any]


class ShardSidecars:
    """What the sidecars of one tar file say."""

    def __init__(self, table: SidecarTable) -> None:
        self._table = table
        self._values: dict[str, Values] = {}
        """By what the video and its sidecars are called, without the ending."""
        self._num_held = 0
        self.left: Counter[str] = Counter()
        """Those that were not read, by why."""

    def add(self, info: tarfile.TarInfo, file: RangedFile) -> None:
        """Read a member, unless nothing in it is wanted.

        Raises:
            VideoError, RangesRefusedError: as `fetch_range`.
        """
        stem, ending = os.path.splitext(info.name)
        ending = ending.lower()
        if not info.isreg() or not self._table.wants(ending):
            return
        if info.size > _MAX_BYTES or self._num_held > _MAX_HELD_BYTES:
            self.left["sidecars that are too large"] += 1
            return
        file.seek(info.offset_data)
        try:
            values = self._table.chosen(_parse(file.read(info.size), ending))
        except (ValueError, RecursionError):
            self.left["sidecars that are no JSON object"] += 1
            return
        self._values.setdefault(stem, {}).update(values)
        texts = [*values, *(value for value in values.values() if isinstance(value, str))]
        self._num_held += _OVERHEAD_BYTES * (1 + len(values)) + sum(map(len, texts))

    def of(self, name: str) -> Values:
        """What is said of the video of this name."""
        return self._values.get(os.path.splitext(name)[0], {})


class SidecarTable:
    """Takes the values of many videos from many threads, of those names that are wanted."""

    def __init__(self, names: Sequence[str], *, taken: Collection[str] = ()) -> None:
        """Args:
        names: ``cls``, ``txt``, keys of the ``.json``; or ``all`` alone.
        taken: what ``all`` leaves out.
        """
        self._names = None if list(names) == ["all"] else frozenset(names) - {"uri"}
        self._taken = {"uri", *taken}
        self._tables: list[pa.Table] = []
        self._lock = threading.Lock()

    def wants(self, ending: str) -> bool:
        """Whether a sidecar with this ending may have a wanted value."""
        if ending not in ENDINGS or self._names is None:
            return ending in ENDINGS
        return not self._names.issubset(_TEXTS) if ending == ".json" else ending[1:] in self._names

    def chosen(self, values: Values) -> Values:
        """Those of the values that are wanted."""
        if self._names is None:
            return {name: value for name, value in values.items() if name not in self._taken}
        return {name: value for name, value in values.items() if name in self._names}

    def add(self, said: Mapping[str, Values]) -> None:
        """Values by URI. Raises UsageError if together they have too many names."""
        names = list(dict.fromkeys(name for values in said.values() for name in values))
        _check_number(len(names))
        columns = {name: _typed([values.get(name) for values in said.values()]) for name in names}
        table = pa.table({"uri": pa.array(list(said), pa.string())} | columns)
        with self._lock:
            self._tables.append(table)

    def table(self) -> pa.Table:
        """A row for each video that has a sidecar: ``uri``, and what they say, by name. Each name has one type: it is
        text where its values have several."""
        types: dict[str, set[pa.DataType]] = defaultdict(set)
        for table in self._tables:
            for field in table.schema:
                types[field.name] |= {field.type} - {pa.null()}
        _check_number(len(types))
        as_text = {name for name, found in types.items() if len(found) != 1 and found != _NUMBERS}
        none = pa.table({"uri": pa.array([], pa.string())})
        tables = [_with_text(table, as_text) for table in self._tables]
        said = pa.concat_tables([none, *tables], promote_options="permissive")
        return said.select(["uri", *sorted(set(said.column_names) - {"uri"})])  # threads add in any order


_NUMBERS = {pa.int64(), pa.float64()}


def _check_number(num_names: int) -> None:
    allowed = f"names of your choice, where the sidecars have more than {_MAX_COLUMNS:,}"
    require(num_names <= _MAX_COLUMNS, "--keep-columns", "all", allowed)


def _with_text(table: pa.Table, names: Collection[str]) -> pa.Table:
    fields = [pa.field(field.name, pa.string()) if field.name in names else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _parse(data: bytes, ending: str) -> Values:
    """Raises ValueError or RecursionError."""
    text = data.decode("utf-8", "backslashreplace")
    if ending != ".json":
        return {ending[1:]: text.strip()}
    found = json.loads(text.removeprefix("\ufeff"))
    if not isinstance(found, dict):
        raise ValueError("no object")
    return {_clean(name): _plain(value) for name, value in found.items() if name not in _TEXTS}


def _plain(value: Any) -> Any:
    """A bool, an int, a float, a text or None. What holds others is JSON text: another type each would be no column."""
    if isinstance(value, dict | list):
        return _clean(json.dumps(value, ensure_ascii=False))
    if isinstance(value, str) or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
        return _clean(str(value))
    return value


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _typed(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
