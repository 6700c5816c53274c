"""Arrow's threads hold nothing of Python's, whose lock they would want when the process is ending."""

from __future__ import annotations

import io
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import runs
from vidray.storage.arrow_file import arrow_file


def test_it_reads_as_the_bytes_do_and_holds_none_of_them():
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2, 3]}), sink)
    data = sink.getvalue()
    before = sys.getrefcount(data)
    file = arrow_file(data)
    assert sys.getrefcount(data) == before
    assert pq.read_schema(file).names == ["a"]
    assert pq.read_table(file)["a"].to_pylist() == [1, 2, 3]
    held = pa.BufferReader(data)
    assert sys.getrefcount(data) == before + 1, f"what this test would see of {held}"


def test_nothing_else_is_given_to_arrow_to_read():
    others = re.compile(r"BufferReader\(|pq\.\w+\(io\.|\.read_(?:csv|json|table|schema)\(io\.|= io\.BytesIO\(\w*read")
    found = {path.name for path in (runs.ROOT / "vidray").rglob("*.py") if others.search(path.read_text())}
    assert found == {"arrow_file.py"}
