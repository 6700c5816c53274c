"""A database that holds the tables of one output, reads nothing else and writes nothing.

DuckDB is given pyarrow datasets instead of paths, and then loses its access to files, for good. What was tried instead:
``allowed_directories`` lets a query write into the output (``COPY``, also within ``WITH``), and views over files fail
without access. What is left is a folder of its own that it may spill to, which is removed at the end.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from vidray.errors import RunError, UsageError
from vidray.results import views
from vidray.results.parts import Parts
from vidray.results.profile import read_profiles
from vidray.results.runs import History, read_history
from vidray.results.views import Choice
from vidray.storage.store import Store

_LOCK = """
SET enable_external_access = false; SET python_enable_replacements = false;
SET autoinstall_known_extensions = false; SET autoload_known_extensions = false; SET lock_configuration = true
"""
_SELECTS = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)
"""MULTI is what PIVOT becomes."""
_ASKED_WRONGLY = (
    *(duckdb.ParserException, duckdb.SyntaxException, duckdb.BinderException, duckdb.CatalogException),
    *(duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException),
    *(duckdb.NotImplementedException, duckdb.TypeMismatchException),
)


class Session:
    """The views of an output (`views.NAMES`), to be asked by SQL; a context manager.

    Raises:
        RunError: there are no rows, or the store failed.
        UsageError: no row is of the model or result key that is asked for.
    """

    def __init__(self, output: str, *, choice: Choice = views.EVERYTHING, memory_bytes: int = 2 * 1024**3) -> None:
        """
        Args:
            memory_bytes: of DuckDB; beyond it, it spills to a temporary folder.
        """
        self._store, self._choice = Store(output), choice
        self._history: History | None = None
        self._has_profiles = False
        self._parts = Parts(self._store)
        with ExitStack() as stack:
            self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vidray-query-"))
            """The one place that the database may write to."""
            self._db = stack.enter_context(duckdb.connect())
            self._db.execute(f"SET temp_directory = {views.literal(self.folder)}; SET TimeZone = 'UTC'")
            self._db.execute(f"SET memory_limit = '{memory_bytes} bytes'; SET enable_progress_bar = false")
            self._make_views()
            self._db.execute(_LOCK)
            self._check_choice()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def uri(self) -> str:
        """Of the output."""
        return self._store.uri

    @property
    def left_out(self) -> tuple[str, ...]:
        """Columns that runs kept with types that contradict each other."""
        return self._parts.left_out

    def select(self, sql: str) -> str:
        """``sql`` without its semicolon, if it is one query, so that it can stand in brackets.

        Raises:
            UsageError: it is something else, or has a mistake in its grammar.
        """
        try:
            statements = self._db.extract_statements(sql)
        except duckdb.Error as error:
            raise self._failure(error) from error
        if len(statements) != 1 or statements[0].type not in _SELECTS:
            kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
            raise UsageError(f"got {kinds}, allowed is one SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE, PIVOT)")
        return _without_end(sql)

    def run(self, sql: str) -> pa.Table:
        """What trusted SQL gives; the rows are held in memory.

        Raises:
            UsageError: the query has a mistake, or wants what it may not.
            RunError: it needs more than there is, or the store failed.
        """
        self._add_history(sql)
        try:
            return self._db.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise self._failure(error) from error

    def columns(self, query: str) -> list[tuple[str, str]]:
        """(name, DuckDB's type) of what a query gives, each name once. Raises as `run`."""
        described = self.run(f"DESCRIBE SELECT * FROM (\n{query}\n)")
        return list(zip(*(described[name].to_pylist() for name in ("column_name", "column_type")), strict=True))

    def copy(self, query: str, path: str, options: str) -> int:
        """Write what a query gives to a file in ``folder``. Returns how many rows that were; raises as `run`."""
        self._add_history(query)
        try:
            copied = self._db.execute(f"COPY (\n{query}\n) TO {views.literal(path)} ({options})")
            return int(copied.fetchall()[0][0])
        except duckdb.Error as error:
            raise self._failure(error) from error

    def register(self, name: str, table: pa.Table) -> None:
        """Make a table known by a name."""
        self._db.register(name, table)

    def _make_views(self) -> None:
        self._db.register("_parts", self._parts.dataset)
        self._db.execute(f"CREATE VIEW all_attempts AS SELECT * FROM _parts WHERE {self._choice.rows_sql}")
        for name, query in views.VIEWS.items():
            self._db.execute(f"CREATE VIEW {name} AS {query}")
        self._db.execute(views.MOMENTS)

    def _check_choice(self) -> None:
        for name in ("model", "result_key"):
            if (got := getattr(self._choice, name)) is not None:
                there = self.run(f"SELECT DISTINCT {name} AS name FROM _parts ORDER BY ALL")["name"].to_pylist()
                if got not in there:
                    flag = f"--{name.replace('_', '-')}"
                    raise UsageError(f"{flag}: got {got!r}, allowed are {', '.join(map(str, there))}")

    def _add_history(self, sql: str) -> None:
        """The tables of runs, whose files are many and small, only for a query that may name them."""
        if self._history is None and re.search(r"\b(runs|verdicts|show|describe)\b", sql, re.IGNORECASE):
            self._history = read_history(self._store)
            for name, table in (("runs", self._history.runs), ("verdicts", self._history.verdicts)):
                self._db.register(f"_{name}", table)
                self._db.execute(f"CREATE VIEW {name} AS FROM _{name} WHERE {getattr(self._choice, f'{name}_sql')}")
        if not self._has_profiles and re.search(r"\b(profiles|show|describe)\b", sql, re.IGNORECASE):
            self._db.register("_profiles", read_profiles(self._store))
            self._db.execute(f"CREATE VIEW profiles AS FROM _profiles WHERE {self._choice.runs_sql}")
            self._has_profiles = True

    def _failure(self, error: duckdb.Error) -> UsageError | RunError:
        """DuckDB's error in one line, as one of ours."""
        if self._parts.failure is not None:
            return self._parts.failure
        text = " ".join(str(error).partition("\n\nLINE ")[0].split())
        if isinstance(error, duckdb.PermissionException):
            return UsageError(f"{text}; a query reads nothing but the output, and writes nothing")
        if isinstance(error, duckdb.CatalogException):
            return UsageError(f"{text}; there are {', '.join(views.NAMES)}")
        return UsageError(text) if isinstance(error, _ASKED_WRONGLY) else RunError(text)


def _without_end(sql: str) -> str:
    """A statement without semicolons and comments behind it."""
    data = sql.encode()
    for start, kind in reversed(duckdb.tokenize(sql)):
        if kind != duckdb.token_type.comment and data[start : start + 1] != b";":
            break
        data = data[:start]
    return data.decode()
