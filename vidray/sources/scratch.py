"""Tables that may be too large for memory: Parquet files in a temporary folder, and DuckDB, which sorts and joins them.

DuckDB spills beyond `MEMORY_BYTES` into the same folder, which goes with all that is in it.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vidray.errors import RunError

MEMORY_BYTES = 1024**3
"""What DuckDB may hold; it took 0.3 GB more at times."""
_MAX_THREADS = 4
"""Each has buffers of its own."""
ROWS_PER_TABLE = 65_536
"""Of what is read back, at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scratch:
    """A folder and its database; see `scratch`."""

    folder: str
    db: duckdb.DuckDBPyConnection

    @contextlib.contextmanager
    def writer(self, name: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
        """Takes tables, one caller at a time. Afterwards their rows are the view ``name``, with a number: ``place``."""
        path = f"{self.folder}/{name}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            yield writer.write_table
        read = f"read_parquet('{path}', file_row_number = true)"
        self.db.execute(
            f"CREATE VIEW {name} AS SELECT * EXCLUDE (file_row_number), file_row_number AS place FROM {read}"
        )

    def write(self, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """The same for tables that are made one after the other."""
        with self.writer(name, schema) as take:
            for table in tables:
                take(table)

    def read(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Iterator[pa.Table]:
        """What a query gives, in tables of ``ROWS_PER_TABLE`` rows or so. Ask for nothing else meanwhile."""
        reader = self.db.sql(sql, params=parameters).to_arrow_reader(ROWS_PER_TABLE)
        yield from (pa.Table.from_batches([batch]) for batch in reader)


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """A new scratch folder, until the block ends.

    Raises:
        RunError: the folder is full, or DuckDB has too little memory.
    """
    with (
        tempfile.TemporaryDirectory(prefix="vidray-scratch-", ignore_cleanup_errors=True) as folder,
        duckdb.connect(f"{folder}/scratch.duckdb") as db,
    ):
        db.execute(f"SET memory_limit = '{MEMORY_BYTES} bytes'; SET temp_directory = '{folder}/spilled'")
        db.execute(f"SET threads = least({_MAX_THREADS}, current_setting('threads')::INTEGER)")
        db.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'")
        try:
            yield Scratch(folder=folder, db=db)
        except duckdb.Error as error:
            raise RunError(f"cannot work in {_where()}: {str(error).splitlines()[0]}") from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise RunError(f"cannot work in {_where()}: it is full") from error


def _where() -> str:
    return f"{tempfile.gettempdir()} ($TMPDIR names another folder)"
