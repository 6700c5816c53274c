"""A night only pays for what is new."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from vidray.errors import RunError
from vidray.scoring import history
from vidray.scoring.output import PREDICTION_SCHEMA, parquet_bytes, part_path
from vidray.storage.store import Store

KEY = "result-key"


def listed(*videos: tuple[str, str | None]) -> pa.Table:
    return pa.table(
        {
            "uri": pa.array([uri for uri, _ in videos], pa.string()),
            "path": pa.nulls(len(videos), pa.binary()),
            "size_bytes": pa.array([1] * len(videos), pa.int64()),
            "etag": pa.array([etag for _, etag in videos], pa.string()),
        }
    )


def rows(*values: tuple[str, str | None, str, int], key: str = KEY) -> pa.Table:
    """Prediction rows: uri, etag, status, attempts."""
    columns: dict[str, object] = dict(
        zip(("uri", "etag", "status", "attempts"), zip(*values, strict=True), strict=True)
    )
    columns["result_key"] = [key] * len(values)
    return pa.table(
        {
            name: pa.array(columns.get(name, [None] * len(values)), t.type)
            for name, t in zip(PREDICTION_SCHEMA.names, PREDICTION_SCHEMA, strict=True)
        }
    )


def plan(videos: pa.Table, done: pa.Table | None = None, *, key: str = KEY, retry: bool = False, attempts: int = 3):
    keys = history.keys_of(done) if done is not None else history.KEYS_SCHEMA.empty_table()
    table = history.plan_new(videos, keys, result_key=key, retry_failed=retry, max_attempts=attempts)
    return list(zip(table["uri"].to_pylist(), table["attempts"].to_pylist(), strict=True))


def test_everything_is_new_to_an_empty_output_and_sorted_by_uri():
    assert plan(listed(("b", "1"), ("a", "1"))) == [("a", 1), ("b", 1)]


def test_what_was_scored_is_not_scored_again():
    assert plan(listed(("a", "1"), ("b", "1")), rows(("a", "1", "ok", 1))) == [("b", 1)]


def test_an_object_that_changed_is_new():
    assert plan(listed(("a", "2")), rows(("a", "1", "ok", 1))) == [("a", 1)]


def test_another_model_or_other_views_make_everything_new():
    assert plan(listed(("a", "1")), rows(("a", "1", "ok", 1)), key="other") == [("a", 1)]


def test_a_passing_failure_is_tried_again_until_max_attempts():
    assert plan(listed(("a", "1")), rows(("a", "1", "decode_timeout", 2))) == [("a", 3)]
    assert plan(listed(("a", "1")), rows(("a", "1", "decode_timeout", 3))) == []


def test_a_lasting_failure_is_tried_again_only_when_asked_for():
    assert plan(listed(("a", "1")), rows(("a", "1", "corrupt", 1))) == []
    assert plan(listed(("a", "1")), rows(("a", "1", "corrupt", 1)), retry=True) == [("a", 2)]


def test_what_succeeded_at_the_second_attempt_is_done_whatever_the_order_of_rows():
    done = rows(("a", "1", "ok", 2), ("a", "1", "decode_timeout", 1))
    assert plan(listed(("a", "1")), done, retry=True) == []


def test_an_object_without_an_etag_is_known_by_its_uri():
    assert plan(listed(("a", None)), rows(("a", None, "not_found", 1))) == [("a", 2)]


def test_keys_never_change_with_a_library():
    key = history.keys_of(rows(("s3://b/ä b.mp4", "e", "ok", 1)))["key"][0].as_py()
    assert key == hashlib.md5("s3://b/ä b.mp4\x1fe\x1fresult-key".encode()).digest()


@pytest.mark.parametrize("finished", [True, False])
def test_rows_are_known_from_the_key_file_or_where_there_is_none_from_the_parts(tmp_path, finished):
    store = Store(str(tmp_path))
    table = rows(("a", "1", "ok", 1), ("b", "1", "corrupt", 1))
    store.create(history.run_file("r", "plan.parquet"), b"")
    if finished:
        store.create(history.run_file("r", "keys.parquet"), parquet_bytes(history.keys_of(table), {}))
    else:
        store.create(part_path("r", 0), parquet_bytes(table, {}))
    assert history.read_keys(store).sort_by("key") == history.keys_of(table).sort_by("key")


def test_merged_key_files_say_the_same_as_those_they_stand_for(tmp_path):
    store = Store(str(tmp_path))

    def finish(number: int) -> None:
        table = rows((f"video {number}", "1", "ok", 1))
        store.create(history.run_file(f"run-{number}", "keys.parquet"), parquet_bytes(history.keys_of(table), {}))
        store.create(history.run_file(f"run-{number}", "_SUCCESS"), b"")

    for night in range(12):
        finish(night)
        before = history.read_keys(store).sort_by("key")
        history.merge_keys(store, min_runs=4)
        assert history.read_keys(store).sort_by("key") == before
        assert history.read_keys(store).num_rows == night + 1
    assert len(store.list("_keys")) == 3


def test_the_query_of_the_docs_keeps_one_row_per_version_and_result_key(tmp_path):
    import re
    from pathlib import Path

    import duckdb

    store = Store(str(tmp_path / "scores"))
    nights = [
        rows(("a", "1", "decode_timeout", 1), ("b", "1", "corrupt", 1), ("c", "1", "ok", 1)),
        rows(("a", "1", "ok", 2), ("b", "1", "corrupt", 2), ("c", "2", "ok", 1)),
        rows(("a", "1", "decode_timeout", 3)),
    ]
    for number, table in enumerate(nights):
        store.create(part_path(f"r{number}", 0), parquet_bytes(table, {}))
    docs = (Path(__file__).parents[2] / "docs" / "output.md").read_text()
    query, portable = re.findall(r"```sql\n(SELECT \* .*?)```", docs, re.DOTALL)
    files = f"{tmp_path}/scores/predictions/*/*.parquet"
    expected = [("a", "1", "ok", 2), ("b", "1", "corrupt", 2), ("c", "1", "ok", 1), ("c", "2", "ok", 1)]
    latest = query.replace("scores/predictions/*/*.parquet", files)
    assert duckdb.sql(f"SELECT uri, etag, status, attempts FROM ({latest}) ORDER BY ALL").fetchall() == expected
    portable = portable.replace("FROM predictions", f"FROM '{files}'")
    assert duckdb.sql(f"SELECT uri, etag, status, attempts FROM ({portable}) ORDER BY ALL").fetchall() == expected


def test_a_run_that_holds_each_planned_row_once_in_any_order_is_complete():
    videos = listed(*((f"v{n}", None if n == 3 else f"e{n}") for n in range(10)))
    done = rows(*((f"v{n}", None if n == 3 else f"e{n}", "ok", 1) for n in reversed(range(10))))
    history.check_complete(videos, history.keys_of(done), result_key=KEY)
    history.check_complete(videos.slice(0, 0), history.KEYS_SCHEMA.empty_table(), result_key=KEY)


@pytest.mark.parametrize("damage", ["lost", "doubled", "replaced", "changed", "of another model"])
def test_a_run_whose_rows_do_not_add_up_is_not_called_complete(damage):
    numbers = {"lost": range(9), "doubled": [*range(10), 4], "replaced": [*range(9), 3]}.get(damage, range(10))
    etag = "x" if damage == "changed" else "e"
    done = rows(*((f"v{n}", etag, "ok", 1) for n in numbers), key="other" if "model" in damage else KEY)
    with pytest.raises(RunError, match="_SUCCESS was not written"):
        history.check_complete(listed(*((f"v{n}", "e") for n in range(10))), history.keys_of(done), result_key=KEY)
