"""A query sees one output, as docs/output.md describes it, and can neither read nor write anything else."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tests.results.test_current import EXPECTED, NIGHTS, night
from tests.support.runs import ROOT
from vidray.errors import RunError, UsageError
from vidray.results import views
from vidray.results.read import CURRENT_SQL, read
from vidray.results.session import Session
from vidray.results.views import EVERYTHING, Choice, planned_before
from vidray.scoring.output import PREDICTION_SCHEMA, SEGMENTS_TYPE, TIMELINE_TYPE, parquet_bytes, part_path
from vidray.storage.store import Store


def write(output: object, *tables: pa.Table) -> str:
    store = Store(str(output))
    for number, table in enumerate(tables):
        store.create(part_path(f"r{number}", 0), parquet_bytes(table, {}))
    return str(output)


def with_column(table: pa.Table, name: str, values: list, kind: pa.DataType | None = None) -> pa.Table:
    column = pa.array(values, kind or PREDICTION_SCHEMA.field(name).type)
    return table.set_column(table.schema.get_field_index(name), name, column)


def ask(output: str, sql: str, choice: Choice = EVERYTHING) -> list[tuple]:
    with Session(output, choice=choice) as session:
        return [tuple(row.values()) for row in session.run(session.select(sql)).to_pylist()]


CURRENT = "SELECT uri, result_key, etag, status, attempts FROM predictions ORDER BY ALL"


def test_predictions_are_the_current_rows_and_all_attempts_are_all(tmp_path):
    output = write(tmp_path, *NIGHTS)
    assert ask(output, CURRENT) == EXPECTED
    assert ask(output, "SELECT count(*) FROM all_attempts") == [(sum(table.num_rows for table in NIGHTS),)]
    failed = sorted(row[0] for row in EXPECTED if row[3] != "ok")
    assert ask(output, "SELECT uri FROM failures ORDER BY uri") == [(uri,) for uri in failed]


def test_predictions_are_what_python_reads(tmp_path):
    output = write(tmp_path, *NIGHTS)
    names = ", ".join(read(output).column_names)
    with Session(output) as session:
        assert session.run(
            f"SELECT {names} FROM predictions ORDER BY uri, start_seconds NULLS FIRST, result_key"
        ).equals(read(output))


def test_what_identifies_a_video_is_taken_from_the_definition_of_current():
    assert f"PARTITION BY {views.IDENTITY} ORDER BY" in " ".join(CURRENT_SQL.split())
    assert {"uri", "result_key"} <= set(views.IDENTITY.split(", ")) <= set(PREDICTION_SCHEMA.names)


@pytest.mark.parametrize("as_of", ["2026-11-02", "2026-11-02T00:00", "2026-11-02T00:00+00:00"])
def test_an_output_can_be_seen_as_it_was(tmp_path, as_of):
    output = write(tmp_path, *NIGHTS)
    then = ask(output, CURRENT, Choice(planned_before=planned_before(as_of)))
    assert then == ask(write(tmp_path / "then", *NIGHTS[:2]), CURRENT)
    assert ("c", "k", "2", "access_denied", 1) in then


def test_a_night_that_is_none_is_refused():
    for text in ("yesterday", "2026-13-01", "20261101T9", "9999-12-31"):
        with pytest.raises(UsageError, match=f"--as-of: got '{text}', allowed is a day or a time"):
            planned_before(text)


def test_a_result_key_and_a_model_can_be_chosen(tmp_path):
    named = with_column(NIGHTS[3], "model", ["it's a model"] * NIGHTS[3].num_rows)
    output = write(tmp_path, *NIGHTS[:3], named)
    expected = [("a", "another model", "1", "ok", 1), ("c", "another model", "2", "ok", 1)]
    for choice in (Choice(result_key="another model"), Choice(model="it's a model")):
        assert ask(output, CURRENT, choice) == expected
    with pytest.raises(UsageError, match=r"--model: got 'x', allowed are it's a model"):
        ask(output, CURRENT, Choice(model="x"))


def documented(word: str) -> str:
    (sql,) = re.findall(rf"```sql\n(-- {word}.*?)```", (ROOT / "docs" / "output.md").read_text(), re.DOTALL)
    return sql


WINDOWS = [[("left", 0.9), ("left", 0.8), ("right", 0.7), ("left", 0.2)], None, [("up", 0.6)]]


def windowed() -> pa.Table:
    segments = [
        None
        if windows is None
        else [
            {"start_seconds": 2.0 * at, "end_seconds": 2.0 * at + 2, "label": label, "score": score}
            for at, (label, score) in enumerate(windows)
        ]
        for windows in WINDOWS
    ]
    table = night(1, ("a", "1", "ok", 1), ("b", "1", "ok", 1), ("c", "1", "ok", 1))
    return with_column(table, "segments", segments, SEGMENTS_TYPE)


def test_segments_and_moments_are_those_of_the_docs(tmp_path):
    output = write(tmp_path, windowed())
    with duckdb.connect() as db:
        db.execute(f"CREATE VIEW current AS FROM read_parquet('{output}/predictions/*/*.parquet')")
        db.execute(documented("a row for each window"))
        db.execute(documented(r"moments\(0.5\)"))
        for query in ("SELECT * FROM segments ORDER BY ALL", "SELECT * FROM moments(0.5) ORDER BY ALL"):
            assert ask(output, query) == db.sql(query).fetchall()
    found = ask(output, "SELECT uri, start_seconds, end_seconds, label FROM moments(min_score := 0.75)")
    assert found == [("a", 0.0, 4.0, "left")]


def test_timelines_say_from_when_to_when(tmp_path):
    entries = [{"end_seconds": 10.0, "label": "x", "score": 0.5}, {"end_seconds": 14.5, "label": "y", "score": 0.75}]
    table = with_column(night(1, ("a", "1", "ok", 1), ("b", "1", "ok", 1)), "timeline", [entries, None], TIMELINE_TYPE)
    found = ask(write(tmp_path, table), "SELECT * FROM timeline")
    assert found == [("a", "k", 0.0, 10.0, "x", 0.5), ("a", "k", 10.0, 14.5, "y", 0.75)]


def test_embeddings_are_there_where_there_are_some(tmp_path):
    table = with_column(night(1, ("a", "1", "ok", 1), ("b", "1", "ok", 1)), "embedding", [[0.5, 2.0], None])
    output = write(tmp_path, table, NIGHTS[0])
    assert ask(output, "SELECT uri, embedding FROM embeddings") == [("a", [0.5, 2.0])]
    assert ask(write(tmp_path / "none", NIGHTS[0]), "SELECT count(*) FROM embeddings") == [(0,)]


def header(run: str, **more: object) -> dict:
    names = ("model", "fingerprint", "view_config", "result_key")
    return {
        **{"run_id": run, "source": ["/v"], "rows_per_part": 50, "num_listed": 5, "num_already_done": 1},
        **{name: name for name in names},
        "created_at": "2026-11-01T02:00:00+00:00",
        **more,
    }


def test_runs_and_verdicts_say_how_nights_went(tmp_path):
    output = write(tmp_path, *NIGHTS[:2])
    store = Store(output)
    plan = pa.table({"row": [0, 1], "uri": ["a", "b"], "path": pa.nulls(2, pa.binary()), "size_bytes": [1, 1]})
    plan = plan.append_column("etag", pa.array(["1", "1"])).append_column("attempts", pa.array([1, 1], pa.int32()))
    for run in ("r0", "r1"):
        created = f"2026-11-0{run[1]}T02:00:00+00:00".replace("-00T", "-03T")
        store.create(f"_runs/{run}/plan.parquet", parquet_bytes(plan, header(run, created_at=created)))
    summary = header("r1", num_scored=3, num_failed=1, num_planned=4, failed_by_status={"corrupt": 1})
    store.create("_runs/r1/summary.json", json.dumps(summary | {"this_process": {"seconds": 2.5}}).encode())
    store.create("_runs/r1/_FAILED", b"")
    verdict = {"time": "2026-11-01T03:00:00+00:00", "exit_code": 3, "outcome": "too_many_failures", "runs": ["r1"]}
    more = {"deferred": {"count": 2}, "given_up": {"count": 0}, "num_listed": 5, "message": "too many"}
    store.create("_verdicts/20261101T030000Z-00.json", json.dumps(verdict | more).encode())
    columns = "run_id, outcome, num_planned, num_scored, failed_by_status['corrupt'], seconds, exit_code, message"
    assert ask(output, f"SELECT {columns} FROM runs") == [
        ("r0", "unfinished", 2, None, None, None, None, None),
        ("r1", "too_many_failures", 4, 3, 1, 2.5, 3, "too many"),
    ]
    assert ask(output, "SELECT outcome, num_deferred, runs FROM verdicts") == [("too_many_failures", 2, ["r1"])]
    before = Choice(planned_before=datetime.datetime(2026, 11, 2, tzinfo=datetime.UTC))
    assert ask(output, "SELECT run_id FROM runs", before) == [("r1",)]


@pytest.mark.parametrize("place", ["tmp_path", "s3_bucket", "gcs_bucket", "azure_container", "memory_folder"])
def test_every_store_can_be_asked(place, request, monkeypatch):
    output = write(f"{request.getfixturevalue(place)}/an output", *NIGHTS)
    assert ask(output, CURRENT) == EXPECTED
    monkeypatch.setattr("vidray.results.parts.WHOLE_BYTES", 100)  # as if the parts were large
    assert ask(output, CURRENT) == EXPECTED


def test_parts_of_older_versions_and_kept_columns_are_read_together(tmp_path):
    kept = [
        NIGHTS[1].append_column("camera", pa.array([1, 2, 3], pa.int32())),
        NIGHTS[4].append_column("camera", pa.array([2**40])).append_column("site", pa.array(["x"])),
        NIGHTS[5].append_column("site", pa.array([[7]])),
    ]
    output = write(tmp_path, NIGHTS[0], *kept)
    sql = "SELECT uri, camera, planned_at IS NULL FROM all_attempts WHERE camera > 1 OR camera IS NULL ORDER BY ALL"
    assert ask(output, sql) == [
        ("a", None, True),
        ("b", 2, False),
        ("b", None, True),
        ("c", 3, False),
        ("c", None, True),
        ("e", 2**40, False),
        ("e", None, False),
    ]
    with Session(output) as session:
        assert session.left_out == ("site",)


HOSTILE = [
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM read_parquet('{folder}/*.parquet')",
    "SELECT * FROM parquet_metadata('{folder}/x.parquet')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_duckdb('{folder}/x.db')",
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "SELECT * FROM query_table('{secret}')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{secret}'')'))",
    "COPY predictions TO '{folder}/new.csv'",
    "COPY predictions TO '{output}/predictions/run=x/part-00000.parquet' (FORMAT parquet)",
    "WITH a AS (COPY predictions TO '{folder}/new.csv') FROM a",
    "WITH a AS (COPY predictions TO '{output}/new.csv') FROM a",
    "WITH a AS (COPY predictions TO '/dev/stdout') FROM a",
    "EXPORT DATABASE '{folder}/new'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/new.db'",
    "ATTACH '{folder}/new.db' AS x; SELECT 1",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA profiling_output = '{folder}/new.json'",
    "SELECT * FROM enable_logging(storage := 'file', storage_path := '{folder}/new')",
    "SELECT * FROM enable_profiling(save_location := '{folder}/new.json')",
    "SELECT getenv('HOME')",
    "SELECT * FROM local_table",
    "EXPLAIN ANALYZE COPY predictions TO '{folder}/new.csv'",
    "CREATE TABLE x AS SELECT 1",
    "CREATE SECRET (TYPE s3)",
    "CHECKPOINT",
    "SELECT 1; COPY predictions TO '{folder}/new.csv'",
    "SELECT 1) TO '{folder}/new.csv'; SELECT (1",
    "CALL pragma_version()",
    "VACUUM",
    "",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_a_hostile_query_reads_and_writes_nothing_else(tmp_path, sql):
    local_table = pa.table({"x": ["a variable of this process"]})
    output = write(tmp_path / "scores", *NIGHTS[:2])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.csv").write_text("name\nsecret\n")
    files = sorted(tmp_path.rglob("*"))
    places = {"secret": elsewhere / "secret.csv", "folder": elsewhere, "output": output}
    with Session(output) as session, pytest.raises(UsageError) as told:
        session.run(session.select(sql.format(**places)))
    assert "\n" not in str(told.value)
    assert sorted(tmp_path.rglob("*")) == files
    assert local_table.num_rows == 1


def test_the_database_itself_has_no_access_whatever_is_asked(tmp_path):
    """The first wall is DuckDB's own: it holds where a statement is not even looked at."""
    output = write(tmp_path / "scores", *NIGHTS[:2])
    (tmp_path / "secret.csv").write_text("name\nsecret\n")
    with Session(output) as session:
        for statement in (
            f"COPY predictions TO '{tmp_path}/new.csv'",
            f"COPY predictions TO '{output}/predictions/run=r0/part-00000.parquet' (FORMAT parquet)",
            f"ATTACH '{tmp_path}/new.db'",
            f"FROM read_csv('{tmp_path}/secret.csv')",
            f"FROM read_parquet('{output}/predictions/*/*.parquet')",
            "SET enable_external_access = true",
            "SET temp_directory = '/tmp'",
        ):
            with pytest.raises(UsageError):
                session.run(statement)
    assert not (tmp_path / "new.csv").exists()


def test_what_it_may_write_to_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with Session(write(tmp_path / "scores", *NIGHTS)) as session:
        session.copy("FROM predictions", f"{session.folder}/x.csv", "FORMAT csv")
        assert len(os.listdir(tmp_path / "temporary")) == 1
    assert os.listdir(tmp_path / "temporary") == []


@pytest.mark.parametrize(
    "sql", ["DESCRIBE predictions", "SHOW TABLES", "SUMMARIZE failures", "PIVOT predictions ON status USING count(*)"]
)
def test_questions_about_the_tables_are_answered(tmp_path, sql):
    assert ask(write(tmp_path, *NIGHTS), sql)


def test_mistakes_are_told_on_one_line_with_what_there_is(tmp_path):
    output = write(tmp_path, *NIGHTS)
    for sql, message in (
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT labl FROM predictions", r'"labl" not found .*label'),
        ("SELECT * FROM prediction", r"prediction does not exist! .*there are predictions, all_attempts, failures"),
        ("SELECT 1; SELECT 2", "got SELECT, SELECT, allowed is one SELECT"),
        ("DROP VIEW predictions", "got DROP, allowed is one SELECT"),
        ("SELECT CAST('x' AS INTEGER)", "Could not convert string 'x'"),
    ):
        with pytest.raises(UsageError, match=message) as told:
            ask(output, sql)
        assert "\n" not in str(told.value)


def test_no_output_an_empty_one_and_a_damaged_one_are_told_on_one_line(tmp_path):
    with pytest.raises(RunError, match=r"nothing holds no rows of vidray score$"):
        ask(str(tmp_path / "nothing"), "SELECT 1")
    Store(str(tmp_path / "begun")).create("_runs/r0/plan.parquet", b"")
    with pytest.raises(RunError, match="holds no rows of vidray score; a run has begun, and has no part yet"):
        ask(str(tmp_path / "begun"), "SELECT 1")
    output = write(tmp_path / "damaged", *NIGHTS[:1])
    Path(output, part_path("r0", 0)).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(RunError, match=r"part-00000\.parquet cannot be read: ") as told:
        ask(output, "SELECT 1")
    assert "\n" not in str(told.value)


LOSE_A_PART_OFTEN = f"""
import uuid
from tests.results.test_current import NIGHTS
from tests.results.test_session import write
from vidray.errors import RunError
from vidray.results.session import Session
from vidray.storage.store import Store

for _ in range(400):
    output = write(f"memory://{{uuid.uuid4().hex}}", *NIGHTS)
    with Session(output) as session:
        Store(output).delete("{part_path("r3", 0)}")
        try:
            session.run("SELECT count(label) FROM all_attempts")
        except RunError:
            continue
    raise SystemExit("no error")
"""


@pytest.mark.long
def test_a_part_that_goes_away_never_leaves_a_query_waiting():
    subprocess.run([sys.executable, "-c", LOSE_A_PART_OFTEN], cwd=ROOT, check=True, timeout=180)


def test_a_part_that_goes_away_meanwhile_is_named(memory_folder):
    output = write(memory_folder, *NIGHTS)
    with Session(output) as session:
        Store(output).delete(part_path("r3", 0))
        with pytest.raises(RunError, match=r"run=r3/part-00000.parquet is gone"):
            session.run("SELECT count(label) FROM all_attempts")


def test_scans_of_one_query_do_not_take_each_others_footers(tmp_path):
    """Otherwise the process dies of it, here in each of six tries."""
    output = write(tmp_path, *(night(1, (str(number), "1", "ok", 1)) for number in range(9)))
    joined = "FROM predictions a JOIN predictions b USING (uri) JOIN predictions c USING (uri) WHERE a.uri = 'x'"
    script = f"""
from vidray.results.session import Session
with Session({output!r}) as session:
    for _ in range(60):
        session.run("SELECT a.uri {joined}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
