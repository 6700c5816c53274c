"""Merged copies are read in place of the parts, hold the same rows, and may vanish."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tests.results.test_current import EXPECTED, NIGHTS
from tests.support.runs import read_rows
from vidray.cli.main import main as cli
from vidray.errors import RunError
from vidray.results.compact import CompactConfig, compact
from vidray.results.merged import find_row_files
from vidray.results.read import read
from vidray.results.session import Session
from vidray.scoring.history import run_file
from vidray.scoring.output import parquet_bytes, part_path
from vidray.storage.store import Store


def write_run(output: object, run: str, table: pa.Table, *, is_finished: bool = True) -> None:
    """A row in each part."""
    store = Store(str(output))
    for row in range(table.num_rows):
        store.create(part_path(run, row), parquet_bytes(table.slice(row, 1), {}))
    store.create(run_file(run, "_SUCCESS" if is_finished else "plan.parquet"), b"")


@pytest.fixture(params=["tmp_path", "s3_bucket"])
def output(request) -> str:
    place = f"{request.getfixturevalue(request.param)}/scores"
    for number, table in enumerate(NIGHTS):
        write_run(place, f"r{number}", table)
    return place


def rows(output: str) -> tuple[Counter, list[tuple]]:
    """All attempts, and what is current."""
    names = "uri, result_key, etag, status, attempts"
    with Session(output) as session:
        asked = (f"SELECT {names} FROM {name} ORDER BY ALL" for name in ("all_attempts", "predictions"))
        every, current = ([tuple(row.values()) for row in session.run(sql).to_pylist()] for sql in asked)
    table = read(output, columns=names.split(", "))
    assert sorted((tuple(row.values()) for row in table.to_pylist()), key=str) == sorted(current, key=str)
    return Counter(every), current


def test_queries_read_few_files_and_find_the_same_rows(output):
    before = rows(output)
    assert before[1] == EXPECTED
    parts = Store(output).list("predictions")
    done = compact(CompactConfig(output=output))
    assert (done.num_runs, done.num_parts, done.num_files) == (len(NIGHTS), len(parts), 2), "an old schema, and today's"
    assert len(find_row_files(Store(output)).sizes) == 2
    assert rows(output) == before
    assert Store(output).list("predictions") == parts
    assert compact(CompactConfig(output=output)).num_runs == 0


def test_runs_that_came_since_count_and_are_merged_next(output):
    compact(CompactConfig(output=output))
    write_run(output, "later", NIGHTS[4])
    write_run(output, "unfinished", NIGHTS[2], is_finished=False)
    every = sum(table.num_rows for table in (*NIGHTS, NIGHTS[4], NIGHTS[2]))
    assert rows(output)[0].total() == every
    write_run(output, "last", NIGHTS[0])
    assert compact(CompactConfig(output=output)).num_parts == NIGHTS[4].num_rows + NIGHTS[0].num_rows
    assert rows(output)[0].total() == every + NIGHTS[0].num_rows
    assert find_row_files(Store(output)).parts.keys() == {"unfinished"}


def test_the_folder_may_be_deleted_in_whole_and_in_part(tmp_path):
    for number, table in enumerate(NIGHTS):
        write_run(tmp_path, f"r{number}", table)
    before = rows(str(tmp_path))
    compact(CompactConfig(output=str(tmp_path)))
    for path in sorted(tmp_path.glob("_merged/**/*.*")):
        kept = path.read_bytes()
        path.unlink()
        assert rows(str(tmp_path)) == before
        path.write_bytes(kept[:-1])
        assert rows(str(tmp_path)) == before
        path.write_bytes(kept)
    shutil.rmtree(tmp_path / "_merged")
    assert rows(str(tmp_path)) == before


def test_a_run_that_lost_a_part_is_read_from_its_parts(tmp_path):
    for number, table in enumerate(NIGHTS):
        write_run(tmp_path, f"r{number}", table)
    compact(CompactConfig(output=str(tmp_path)))
    Path(tmp_path, part_path("r0", 1)).unlink()
    assert rows(str(tmp_path))[0].total() == sum(table.num_rows for table in NIGHTS) - 1
    assert rows(str(tmp_path))[0].total() == len(read_rows(tmp_path))
    assert compact(CompactConfig(output=str(tmp_path))).num_runs == len(NIGHTS)
    assert rows(str(tmp_path))[0].total() == len(read_rows(tmp_path))


def test_of_two_at_a_time_one_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    write_run(tmp_path, "r0", NIGHTS[0])
    late = find_row_files(Store(str(tmp_path)))
    compact(CompactConfig(output=str(tmp_path)))
    files = sorted(tmp_path.rglob("*.*"))
    monkeypatch.setattr("vidray.results.compact.find_row_files", lambda store: late)
    with pytest.raises(RunError, match=r"another vidray compact of .* was faster"):
        compact(CompactConfig(output=str(tmp_path)))
    assert sorted(tmp_path.rglob("*.*")) == files


def test_large_copies_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("vidray.results.compact._FILE_BYTES", 1)
    monkeypatch.setattr("vidray.results.compact._AT_ONCE", 2)
    write_run(tmp_path, "r0", NIGHTS[0])
    assert compact(CompactConfig(output=str(tmp_path))).num_files == NIGHTS[0].num_rows
    assert rows(str(tmp_path))[0].total() == NIGHTS[0].num_rows


def test_the_command_says_what_it_did(tmp_path, capsys):
    write_run(tmp_path, "r0", NIGHTS[0])
    assert cli(["compact", "--output", str(tmp_path)]) == 0
    assert "merged 3 parts of 1 runs into 1 files\nnext: vidray query --output" in capsys.readouterr().out
    assert cli(["compact", "--output", str(tmp_path)]) == 0
    assert "nothing to merge" in capsys.readouterr().out
    assert cli(["compact", "--output", str(tmp_path / "nothing")]) == 1
    assert "holds no rows of vidray score" in capsys.readouterr().err
