"""The statements for other engines make the same tables there: Athena's through DuckDB, Spark's in Spark."""

from __future__ import annotations

import json
import shutil
import subprocess
import venv

import duckdb
import pyarrow as pa
import pytest
import sqlglot

from tests.results.test_current import NIGHTS, night
from tests.results.test_session import windowed, with_column, write
from vidray.cli.main import main as cli
from vidray.results.session import Session
from vidray.scoring.output import PREDICTION_SCHEMA, TIMELINE_TYPE

QUESTIONS = {
    "predictions": "SELECT uri, result_key, etag, status, attempts FROM predictions",
    "failures": "SELECT uri, status FROM failures",
    "timeline": "SELECT * FROM timeline",
    "segments": "SELECT * FROM segments",
    "moments": "SELECT * FROM moments",
    "embeddings": "SELECT uri, result_key, embedding FROM embeddings",
}


@pytest.fixture
def output(tmp_path) -> str:
    entries = [{"end_seconds": 10.0, "label": "x", "score": 0.5}, {"end_seconds": 14.5, "label": "y", "score": 0.75}]
    streamed = with_column(night(1, ("s", "1", "ok", 1)), "timeline", [entries], TIMELINE_TYPE)
    seen = with_column(night(2, ("t", "1", "ok", 1)), "embedding", [[0.5, 2.0]])
    windows = with_column(windowed(), "result_key", ["w"] * 3)
    kept = NIGHTS[1].append_column("Camera No", pa.array([1, 2, 3], pa.int32()))
    return write(tmp_path / "scores", NIGHTS[0], kept, *NIGHTS[2:], streamed, seen, windows)


def statements(output: str, engine: str, capsys) -> list[str]:
    assert cli(["query", "--output", output, "--ddl", engine]) == 0
    return capsys.readouterr().out.rstrip().removesuffix(";").split(";\n\n")


def expected(output: str) -> dict[str, list]:
    with Session(output) as session:
        asked = {name: sql.replace("FROM moments", "FROM moments(0.5)") for name, sql in QUESTIONS.items()}
        return {name: values(session.run(sql).to_pylist()) for name, sql in asked.items()}


def values(rows: list[dict]) -> list:
    return sorted(json.dumps(list(row.values())) for row in rows)


def for_duckdb(view: str) -> str:
    """Athena's SQL, translated; DuckDB unnests several lists side by side in a SELECT only."""
    parsed = sqlglot.parse_one(view, read="athena")
    for unnest in list(parsed.find_all(sqlglot.exp.Unnest)):
        names = [column.name for column in unnest.args["alias"].columns]
        lists = [one.sql("duckdb") for one in unnest.expressions]
        columns = ", ".join(f"unnest({one}) AS {name}" for one, name in zip(lists, names, strict=True))
        unnest.replace(
            sqlglot.parse_one(f"LATERAL (SELECT {columns}) AS entry", into=sqlglot.exp.Lateral, read="duckdb")
        )
    return parsed.sql("duckdb")


def test_athena_finds_the_same_rows(output, capsys):
    """Its SQL, put into DuckDB's by a translator that knows both."""
    table, *views = statements(output, "athena", capsys)
    assert {view.split()[4] for view in views} == set(QUESTIONS)
    (parsed,) = sqlglot.parse(table, read="athena")
    columns = [column.name for column in parsed.this.expressions]
    assert columns == [*PREDICTION_SCHEMA.names, "Camera No"]
    assert f"LOCATION '{output}/predictions/'" in table
    with duckdb.connect() as db:
        files = f"read_parquet('{output}/predictions/*/*.parquet', union_by_name = true, hive_partitioning = false)"
        db.execute(f"CREATE VIEW all_attempts AS SELECT * FROM {files}")
        for view in views:
            db.execute(for_duckdb(view))
        found = {name: values(db.sql(sql).to_arrow_table().to_pylist()) for name, sql in QUESTIONS.items()}
    assert found == expected(output)
    assert all(found.values())


SPARK = """
import json, sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
for statement in json.loads(sys.argv[1]):
    spark.sql(statement)
asked = {name: spark.sql(sql) for name, sql in json.loads(sys.argv[2]).items()}
print(json.dumps({name: [row.asDict(True) for row in frame.collect()] for name, frame in asked.items()}))
"""


@pytest.mark.long
def test_spark_finds_the_same_rows(output, tmp_path, capsys):
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pyspark>=4,<5"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pyspark could not be installed: {done.stderr.splitlines()[-1]}")
    arguments = [json.dumps(statements(output, "spark", capsys)), json.dumps(QUESTIONS)]
    done = subprocess.run([python, "-c", SPARK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: values(rows) for name, rows in found.items()} == expected(output)
