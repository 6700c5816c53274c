"""An analyst asks an output in SQL from a shell, and takes the answer along."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.test_current import EXPECTED, NIGHTS, night
from tests.results.test_session import with_column, write
from tests.support.runs import ROOT
from vidray.cli.main import main as cli
from vidray.results.examples import EXAMPLES
from vidray.results.session import Session
from vidray.scoring.output import TOP_K_TYPE


@pytest.fixture
def output(tmp_path) -> str:
    return write(tmp_path / "scores", *NIGHTS)


def query(*arguments: str) -> int:
    return cli(["query", *arguments])


def test_rows_come_as_a_table_that_says_how_many_there_are(output, capsys):
    assert query("--output", output, "SELECT uri, status, attempts FROM predictions WHERE uri < 'c' ORDER BY ALL") == 0
    assert capsys.readouterr().out.splitlines() == [
        "uri  status   attempts",
        "───  ───────  ────────",
        "a    ok              1",
        "a    ok              2",
        "b    corrupt         2",
        "3 rows",
    ]


def test_a_table_that_is_longer_than_the_screen_says_so(output, capsys):
    assert query("--output", output, "SELECT a.uri FROM all_attempts a, all_attempts b, all_attempts c, range(2)") == 0
    lines = capsys.readouterr().out.splitlines()
    num_rows = sum(table.num_rows for table in NIGHTS) ** 3 * 2
    assert len(lines) == 1003
    assert lines[-1] == f"{num_rows:,} rows, of which these are 1,000; --format csv --to FILE takes all"


def test_a_query_may_come_from_a_file(output, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.stdin",
        io.StringIO("-- a comment\nSELECT count(*) AS n FROM predictions WHERE uri <> 'é;'; ; -- the end;\n"),
    )
    assert query("--output", output, "-", "--format", "csv") == 0
    assert capsys.readouterr().out == f"n\n{len(EXPECTED)}\n"


def test_every_format_holds_the_same_rows_in_their_order(tmp_path, output, capsys):
    sql = "SELECT uri, attempts, status = 'ok' AS good, uri FROM predictions ORDER BY uri DESC, attempts, good"
    wanted = sorted(((uri, attempts, status == "ok", uri) for uri, _, _, status, attempts in EXPECTED), key=str)
    wanted.sort(key=lambda row: row[1:3])
    wanted.sort(key=lambda row: row[0], reverse=True)
    names = ["uri", "attempts", "good", "uri_1"]
    for name in ("x.csv", "x.jsonl", "x.parquet"):
        assert query("--output", output, sql, "--to", str(tmp_path / name)) == 0
        assert f"written to {tmp_path / name}" in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "x.parquet")
    assert rows.column_names == names
    assert [tuple(row.values()) for row in rows.to_pylist()] == wanted
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [names] * len(wanted)
    assert [tuple(json.loads(line).values()) for line in lines] == wanted
    head, *rest = csv.reader((tmp_path / "x.csv").open())
    assert head == names
    assert rest == [[uri, str(attempts), str(good).lower(), uri] for uri, attempts, good, _ in wanted]


def test_a_large_answer_keeps_its_order(tmp_path, capsys):
    output = write(tmp_path, *(night(1, *((f"{n:04d}", "1", "ok", 1) for n in range(1000))) for _ in range(2)))
    sql = "SELECT uri || i AS x FROM predictions, range(300) r(i) ORDER BY x DESC"
    assert query("--output", output, sql, "--format", "csv") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 300_000
    assert lines == sorted(lines, reverse=True)


def test_nested_values_and_odd_numbers_survive(tmp_path, capsys):
    top = [[{"label": 'x, "y"', "score": 0.93}, {"label": "z", "score": 0.5}], None]
    table = with_column(night(1, ("a", "1", "ok", 1), ("b", "1", "ok", 1)), "top_k", top, TOP_K_TYPE)
    output = write(tmp_path, with_column(table, "score", [0.93, float("nan")]))
    sql = "SELECT top_k, score, planned_at, sum(1) OVER () AS n FROM predictions ORDER BY uri"
    assert query("--output", output, sql, "--format", "jsonl") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [entry["label"] for entry in first["top_k"]] == ['x, "y"', "z"]
    assert (first["score"], second["score"], first["n"]) == (0.93, None, 2)
    assert query("--output", output, sql, "--format", "csv") == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [entry["label"] for entry in json.loads(first["top_k"])] == ['x, "y"', "z"]
    assert (first["score"], first["planned_at"], second["top_k"]) == ("0.93", "2026-11-01 00:00:00+00", "")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "＝1", "=cmd|' /C calc'!A0"])
def test_a_spreadsheet_finds_no_formula_in_csv(tmp_path, capsys, text):
    output = write(tmp_path, night(1, (text, "1", "ok", 1), ("a=1", "1", "ok", 1)))
    sql = "SELECT uri, -1 AS number, '=x' AS \"=head\" FROM predictions ORDER BY uri = 'a=1'"
    assert query("--output", output, sql, "--format", "csv") == 0
    head, bad, good = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert head == ["uri", "number", "'=head"]
    assert bad == [f"'{text}", "-1", "'=x"]
    assert good[0] == "a=1"
    assert query("--output", output, sql, "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["uri"] == text


def test_answers_go_to_a_bucket_too(s3_bucket, capsys):
    output = write(f"{s3_bucket}/scores", *NIGHTS)
    assert query("--output", output, "FROM predictions", "--to", f"{s3_bucket}/answers/x.parquet") == 0
    assert query("--output", output, "FROM predictions", "--to", f"{s3_bucket}/answers/x.parquet") == 1
    assert "x.parquet is there already, and is not overwritten" in capsys.readouterr().err


def test_no_file_is_overwritten_and_none_lies_in_the_output(tmp_path, output, capsys):
    (tmp_path / "x.csv").write_text("mine")
    assert query("--output", output, "FROM predictions", "--to", str(tmp_path / "x.csv")) == 1
    assert (tmp_path / "x.csv").read_text() == "mine"
    for inside in (f"{output}/x.csv", f"{output}/predictions/run=r0/x.csv", f"{tmp_path}/a/../scores/x.csv"):
        assert query("--output", output, "FROM predictions", "--to", inside) == 2
        assert "allowed is a file outside of the output" in capsys.readouterr().err
    assert query("--output", output, "SELECT error('x') FROM predictions", "--to", str(tmp_path / "y.csv")) != 0
    assert not (tmp_path / "y.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output: got None, allowed is the folder that vidray score wrote to"),
        (
            ["--output", "x", "FROM predictions", "--to", "x.xls"],
            "--to: got 'x.xls', allowed is .csv, .jsonl",
        ),
        (["--output", "x", "--format", "csv"], "--format: got 'csv', allowed is table for an overview"),
        (["--output", "x", "--as-of", "monday"], "--as-of: got 'monday', allowed is a day or a time"),
        (["--output", "x", "--memory-bytes", "5"], "--memory-bytes: got 5, allowed is at least"),
    ],
)
def test_what_cannot_be_meant_is_refused_on_one_line(arguments, message, capsys):
    assert query(*arguments) == 2
    text = capsys.readouterr().err
    assert message in text
    assert len(text.splitlines()) == 1


def test_a_mistake_in_sql_costs_one_line_and_no_traceback(output):
    command = [sys.executable, "-m", "vidray", "query", "--output", output, "SELECT labl FROM predictions"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert 'Referenced column "labl" not found' in done.stderr


@pytest.mark.parametrize("title", EXAMPLES)
def test_every_example_runs_on_any_output(tmp_path, output, title):
    old = write(tmp_path / "old", NIGHTS[0])
    for place in (output, old):
        with Session(place) as session:
            session.run(session.select(EXAMPLES[title]))


def answers(output: str, word: str) -> list[tuple]:
    (sql,) = (sql for title, sql in EXAMPLES.items() if title.startswith(word))
    with Session(output) as session:
        return [tuple(row.values()) for row in session.run(session.select(sql)).to_pylist()]


def test_examples_answer_what_they_say(tmp_path):
    def labelled(day: int, labels: dict[str, str], key: str = "k") -> pa.Table:
        table = night(day, *((uri, "1", "ok", 1) for uri in labels), key=key)
        table = with_column(table, "score", [0.5 + n / 10 for n in range(len(labels))])
        return with_column(table, "label", list(labels.values()))

    tops = [[{"label": "x", "score": 0.6}, {"label": "y", "score": 0.35}], [{"label": "y", "score": 1.0}]]
    first = labelled(1, {"/v/a": "x", "/v/b": "y", "/w/c": "x"})
    first = with_column(first, "top_k", [*tops, None], TOP_K_TYPE)
    output = write(
        tmp_path, first, labelled(2, {"/v/a": "x", "/v/b": "z"}, key="m"), night(2, ("/w/d", "1", "corrupt", 1))
    )
    assert [row[:3] for row in answers(output, "Least sure")] == [("/v/a", "x", "y")]
    assert [row[0] for row in answers(output, "Near the threshold")] == ["/v/a", "/v/a", "/v/b", "/v/b"]
    assert [row[1] for row in answers(output, "A label over the nights")] == [2, 1]
    assert [row[:2] for row in answers(output, "Labels that the last night")] == [("z", 1)]
    assert [row[:3] for row in answers(output, "Where two models disagree")] == [("/v/b", "y", "z")]
    assert [row[:3] for row in answers(output, "By folder")] == [("/v/", 4, 0), ("/w/", 2, 1)]
    assert answers(output, "Failures by kind") == [("corrupt", 1, None)]


def documented() -> list[str]:
    """The queries of the pages that are for `vidray query`."""
    text = "".join((ROOT / page).read_text() for page in ("docs/output.md", "docs/embeddings.md"))
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    queries = [block for block in blocks if block.startswith(("-- query", "-- similar"))]
    (readme,) = re.findall(r"```sql\n(-- Least sure first.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [query for block in [*queries, readme] for query in block.split(";\n") if query.strip()]


@pytest.mark.parametrize("sql", documented())
def test_every_query_of_the_docs_runs(output, sql):
    with Session(output) as session:
        session.run(session.select(sql))


def test_the_commands_of_the_docs_run(tmp_path, output, capsys, monkeypatch):
    pages = [(ROOT / page).read_text() for page in ("docs/output.md", "README.md")]
    commands = [line for page in pages for line in re.findall(r"^vidray query .*$", page, re.MULTILINE)]
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = shlex.split(command.partition(" <")[0], comments=True)[1:]
        words[words.index("--output") + 1] = output
        monkeypatch.setattr("sys.stdin", io.StringIO("FROM runs"))
        assert cli(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"scores", "failures.csv", "archery.csv"}


def test_there_are_ten_examples_and_they_print_as_sql(capsys, output):
    assert query("--examples") == 0
    text = capsys.readouterr().out
    assert text.count(";\n") == 10
    with Session(output) as session:
        for statement in text.split(";\n"):
            assert not statement.strip() or session.select(statement)


def test_the_overview_counts_videos_labels_and_failures_and_says_what_to_type(tmp_path, capsys):
    output = write(
        tmp_path,
        with_column(NIGHTS[0], "label", [None, None, "it's x"]),
        with_column(NIGHTS[1], "label", ["y", None, None]),
        with_column(NIGHTS[3], "label", ["x", "x"]),
    )
    assert query("--output", output) == 0
    text = capsys.readouterr().out
    assert "2 videos by a model, the last scored 2026-11-03 00:00 UTC: 2 with a label, 0 without" in text
    assert "--result-key chooses" in text
    assert query("--output", output, "--result-key", "k") == 0
    text = capsys.readouterr().out
    assert "3 videos by a model, the last scored 2026-11-02 00:00 UTC: 1 with a label, 2 without" in text
    (following,) = (line for line in text.splitlines() if line.startswith("next: "))
    assert cli(shlex.split(following)[2:]) == 0
    assert capsys.readouterr().out.endswith("1 row\n")


def test_an_overview_of_nothing_that_was_asked_for_is_told(output, capsys):
    assert query("--output", output, "--as-of", "2020-01-01") == 0
    assert "no rows of what was asked for" in capsys.readouterr().out
    assert query("--output", f"{output}/nothing") == 1
    assert "holds no rows of vidray score" in capsys.readouterr().err


def test_a_table_fits_the_terminal(output):
    main, side = pty.openpty()
    command = [sys.executable, "-m", "vidray", "query", "--output", output, "SELECT * FROM predictions, range(50)"]
    environment = {**os.environ, "COLUMNS": "70", "LINES": "24"}
    subprocess.run(command, stdout=side, cwd=ROOT, env=environment, check=True)
    os.close(side)
    lines = os.read(main, 100_000).decode().splitlines()
    os.close(main)
    assert max(map(len, lines[:-2])) <= 70
    assert len(lines) <= 24
    assert "columns that do not fit: " in lines[-2]
    assert lines[-1].startswith(f"{50 * len(EXPECTED)} rows, of which these are 18")
