"""What a query gives as a file: CSV that a spreadsheet may open, JSON lines, Parquet."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Literal

from vidray.errors import RunError, UsageError
from vidray.results.session import Session
from vidray.results.views import quoted
from vidray.storage.store import create_file, file_place

Format = Literal["table", "csv", "jsonl", "parquet"]

_OPTIONS = {"csv": "FORMAT csv, HEADER", "jsonl": "FORMAT json", "parquet": "FORMAT parquet, COMPRESSION zstd"}
_EXECUTED = r"^[=+\-@\t\r\n＝＋－＠]"
"""A spreadsheet takes text that begins so for a formula (OWASP, CSV Injection)."""
_NUMBERS = ("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
"""How the names of types begin whose values are numbers, or true and false."""


def write_result(session: Session, query: str, *, kind: str, to: str | None) -> int:
    """Write what a query gives to a new file, whole or not at all; None or ``-``: to standard output.

    Returns how many rows these are.

    Raises:
        UsageError: as `Session.run`; or Parquet would go to a screen, or the file would lie in the output.
        RunError: as `Session.run`; or the place is taken, or cannot be written.
    """
    is_printed = to in (None, "-")
    if is_printed and kind == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet: got a terminal, allowed is --to FILE, or a pipe")
    if not is_printed:
        _check_place(session, str(to))
    path = os.path.join(session.folder, f"result.{kind}")
    num_rows = session.copy(_projected(session, query, kind), path, _OPTIONS[kind])
    with open(path, "rb") as file:
        if is_printed:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
        else:
            create_file(str(to), file.read())
    os.unlink(path)
    return num_rows


def _check_place(session: Session, to: str) -> None:
    (place, name), output = file_place(to), session.uri.rstrip("/") + "/"
    if not name or f"{place.uri.rstrip('/')}/".startswith(output):
        raise UsageError(f"--to: got {to!r}, allowed is a file outside of the output {session.uri}")
    if place.exists(name):
        raise RunError(f"{to} is there already, and is not overwritten")


def _projected(session: Session, query: str, kind: str) -> str:
    """The query, its columns turned into what the format can hold."""
    if kind == "parquet":
        return query
    turn = _for_csv if kind == "csv" else _for_json
    columns = [f"{turn(quoted(name), of)} AS {quoted(_head(name, kind))}" for name, of in session.columns(query)]
    return f"SELECT {', '.join(columns)} FROM (\n{query}\n)"


def _head(name: str, kind: str) -> str:
    return f"'{name}" if kind == "csv" and name[:1] in set("=+-@\t\r\n＝＋－＠") else name


def _for_csv(column: str, kind: str) -> str:
    if kind.startswith(_NUMBERS) and "[" not in kind:
        return column
    text = f"CAST(to_json({column}) AS VARCHAR)" if "[" in kind or "(" in kind else f"CAST({column} AS VARCHAR)"
    return f"CASE WHEN regexp_matches({text}, '{_EXECUTED}') THEN '''' || {text} ELSE {text} END"


def _for_json(column: str, kind: str) -> str:
    if kind not in ("FLOAT", "DOUBLE"):
        return column
    # 0.93 of 32 bits is 0.9300000071525574 of 64; and JSON has no NaN.
    number = f"CAST(CAST({column} AS VARCHAR) AS DOUBLE)" if kind == "FLOAT" else column
    return f"CASE WHEN isfinite({column}) THEN {number} END"
