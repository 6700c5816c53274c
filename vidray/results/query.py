"""``vidray query``: an output in SQL, or in an overview, for people who never see Python."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from vidray.flags import require, shown_as
from vidray.pages.words import count
from vidray.results import views
from vidray.results.ddl import Engine, ddl
from vidray.results.examples import format_examples
from vidray.results.formats import Format, write_result
from vidray.results.overview import overview
from vidray.results.parts import Parts
from vidray.results.session import Session
from vidray.results.table import format_table, screen_width
from vidray.results.views import Choice
from vidray.storage.store import Store

_EXTENSIONS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
_PIPED_ROWS = 1000
"""Of a table that goes to no screen."""


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Ask an output in SQL (DuckDB's); without SQL, an overview. It reads nothing else, and writes nothing there.
    Tables: predictions (the current row of each video), all_attempts, failures, timeline, segments, moments(0.5),
    embeddings, runs, verdicts, profiles."""

    sql: Annotated[tyro.conf.Positional[str | None], shown_as("SQL")] = None
    """One SELECT; -: read from standard input. Default: an overview."""
    output: Annotated[str | None, shown_as("URI")] = None
    """The folder that vidray score wrote to. Required, but for --examples."""
    examples: bool = False
    """Print ten queries to start from."""
    ddl: Engine | None = None
    """Print the statements that make the same tables in Athena or Spark."""
    model: Annotated[str | None, shown_as("MODEL")] = None
    """Only rows of this --model of vidray score."""
    result_key: Annotated[str | None, shown_as("KEY")] = None
    """Only rows of this result key: one model with one way to see videos."""
    as_of: Annotated[str | None, shown_as("NIGHT")] = None
    """As the output was: only runs planned until the end of a day, as 2026-11-20, or until a time (UTC)."""
    format: Format | None = None
    """Default: as --to ends, else a table that fits the screen."""
    to: Annotated[str | None, shown_as("FILE")] = None
    """A new file, on a disk or in a bucket. Default, or -: standard output."""
    memory_bytes: int = 2 * 1024**3
    """What the database may hold; beyond it, it uses a temporary folder."""

    def __post_init__(self) -> None:
        require(
            self.examples or self.output is not None, "--output", self.output, "the folder that vidray score wrote to"
        )
        require(self.memory_bytes >= 2**26, "--memory-bytes", self.memory_bytes, "at least 67108864 (64 MiB)")
        is_file = self.to not in (None, "-")
        asks_in_sql = self.sql is not None or (self.kind == "table" and not is_file)
        prints_sql = self.examples or self.ddl is not None
        require(asks_in_sql or prints_sql, "--format", self.kind, "table for an overview; write a SELECT for others")
        require(not is_file or self.kind != "table", "--to", self.to, f"{', '.join(_EXTENSIONS)}, or --format with it")
        if self.as_of is not None:
            views.planned_before(self.as_of)

    @property
    def kind(self) -> Format:
        """The format that is asked for, or follows from the file's name."""
        return self.format or _EXTENSIONS.get(os.path.splitext(self.to or "")[1].lower(), "table")

    @property
    def choice(self) -> Choice:
        """Which rows count."""
        before = None if self.as_of is None else views.planned_before(self.as_of)
        return Choice(model=self.model, result_key=self.result_key, planned_before=before)


def query(config: QueryConfig) -> None:
    """Print what is asked for, or write it to a file.

    Raises:
        UsageError: the query has a mistake, or wants more than to read the output.
        RunError: there are no rows, or the store failed, or the file is there already.
    """
    if config.examples:
        print(format_examples())
        return
    assert config.output is not None
    if config.ddl is not None:
        store = Store(config.output)
        print(ddl(config.ddl, store.uri, Parts(store).schema))
        return
    with Session(config.output, choice=config.choice, memory_bytes=config.memory_bytes) as session:
        for name in session.left_out:
            _note(f"the column {name!r} is left out: runs kept it with types that contradict each other")
        if config.sql is None:
            print(overview(session, width=screen_width()))
            return
        selected = session.select(sys.stdin.read() if config.sql == "-" else config.sql)
        if config.kind == "table":
            print_table(session, selected)
        else:
            num_rows = write_result(session, selected, kind=config.kind, to=config.to)
            if config.to not in (None, "-"):
                _note(f"{count(num_rows, 'row')} written to {config.to}")


def print_table(session: Session, selected: str) -> None:
    """As many rows as the screen has lines, and how many there are if that is not all of them."""
    most = max(shutil.get_terminal_size().lines - 6, 10) if sys.stdout.isatty() else _PIPED_ROWS
    table = session.run(f"SELECT * FROM (\n{selected}\n) LIMIT {most + 1}")
    print(format_table(table.slice(0, most), width=screen_width()))
    if table.num_rows > most:
        num_rows = session.run(f"SELECT count(*) AS n FROM (\n{selected}\n)")["n"][0].as_py()
        print(f"{num_rows:,} rows, of which these are {most:,}; --format csv --to FILE takes all")
    else:
        print(count(table.num_rows, "row"))


def _note(text: str) -> None:
    print(f"vidray: {text}", file=sys.stderr, flush=True)
