"""The benchmark of questions, over a year in small; the year itself is long."""

from __future__ import annotations

import duckdb
import pytest

from benchmarks import query


def test_each_question_is_timed(capsys):
    query.main(["--runs", "3", "--rows", "100", "--rows-per-part", "40", "--compact"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("merged 9 parts of 3 runs into 1 files") for line in lines)
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| ") and "question" not in line]
    assert [name.strip() for name, *_ in rows] == [*query.QUESTIONS] * 2
    assert all(float(seconds) > 0 and int(peak.replace(",", "")) > 50 for _, seconds, peak in rows)


@pytest.mark.long
def test_a_year_of_nights_is_asked_in_bounded_memory(tmp_path):
    """10 million rows, of which the database may hold 2 GiB at a time; counted beside by another way."""
    query.write_year(tmp_path, num_runs=400, num_rows=25_000, rows_per_part=25_000)
    sql = "SELECT count(*) AS n, count(DISTINCT label) AS labels FROM predictions"
    seconds, peak, printed = query.measure(tmp_path, sql)
    assert peak < 3 * 1024
    assert seconds < 120
    with duckdb.connect() as db:
        db.execute("SET memory_limit = '4GB'")
        files = f"{tmp_path}/predictions/*/*.parquet"
        (num_videos,) = db.execute(f"SELECT count(DISTINCT uri) FROM '{files}'").fetchone()
    assert str(num_videos) in printed.split()
