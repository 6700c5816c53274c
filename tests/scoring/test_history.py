"""A night only pays for what is new."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pytest

from vidray.errors import RunError
from vidray.scoring import history, output
from vidray.scoring.output import PREDICTION_SCHEMA, Shards, parquet_bytes, part_path
from vidray.scoring.plan_rows import PlanRows
from vidray.sources.rows import TAR_MEMBER, Span
from vidray.storage.store import Store
from vidray.types import Status

KEY = "result-key"


def listed(*videos: tuple[str, str | None], spans: Sequence[Span] = ()) -> pa.Table:
    return pa.table(
        {
            "uri": pa.array([uri for uri, _ in videos], pa.string()),
            "path": pa.nulls(len(videos), pa.binary()),
            "label": pa.nulls(len(videos), pa.string()),
            "size_bytes": pa.array([1] * len(videos), pa.int64()),
            "etag": pa.array([etag for _, etag in videos], pa.string()),
            "start_seconds": pa.array([start for start, _ in spans] or [None] * len(videos), pa.float64()),
            "end_seconds": pa.array([end for _, end in spans] or [None] * len(videos), pa.float64()),
            "tar_member": pa.nulls(len(videos), TAR_MEMBER),
        }
    )


def rows(*values: tuple[str, str | None, str, int], key: str = KEY, video_attempts: int | None = None) -> pa.Table:
    """Prediction rows: uri, etag, status, attempts. ``video_attempts``: of all; else as if each attempt counted."""
    columns: dict[str, object] = dict(
        zip(("uri", "etag", "status", "attempts"), zip(*values, strict=True), strict=True)
    )
    columns["result_key"] = [key] * len(values)
    blameless = {status.value for status in Status if status.is_store_failure} | {"ok"}
    columns["video_attempts"] = [
        (0 if status in blameless else attempts) if video_attempts is None else video_attempts
        for _, _, status, attempts in values
    ]
    return pa.table(
        {
            name: pa.array(columns.get(name, [None] * len(values)), t.type)
            for name, t in zip(PREDICTION_SCHEMA.names, PREDICTION_SCHEMA, strict=True)
        }
    )


def read_keys(store: Store) -> pa.Table:
    return pa.concat_tables([history.KEYS_SCHEMA.empty_table(), *history.read_keys(store)])


def test_keys_never_change_with_a_library():
    key = history.keys_of(rows(("s3://b/ä b.mp4", "e", "ok", 1)))["key"][0].as_py()
    assert key == hashlib.md5("s3://b/ä b.mp4\x1fe\x1fresult-key".encode()).digest()


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [(None, None, ""), (0.1, 0.3, "\x1f100000-300000"), (2.5, None, "\x1f2500000"), (None, 1e4, "\x1f0-10000000000")],
)
def test_a_span_is_part_of_the_key_where_there_is_one_in_whole_microseconds(start, end, span):
    of_span = output.with_spans(rows(("/a", "e", "ok", 1)).drop_columns(["start_seconds", "end_seconds"]))
    for name, value in (("start_seconds", start), ("end_seconds", end)):
        place = of_span.schema.get_field_index(name)
        of_span = of_span.set_column(place, name, pa.array([value], pa.float64()))
    key = history.keys_of(of_span)["key"][0].as_py()
    assert key == hashlib.md5(f"/a\x1fe\x1fresult-key{span}".encode()).digest()


@pytest.mark.parametrize("finished", [True, False])
def test_rows_are_known_from_the_key_file_or_where_there_is_none_from_the_parts(tmp_path, finished):
    store = Store(str(tmp_path))
    table = rows(("a", "1", "ok", 1), ("b", "1", "corrupt", 1))
    store.create(history.run_file("r", "plan.parquet"), b"")
    if finished:
        store.create(history.run_file("r", "keys.parquet"), parquet_bytes(history.keys_of(table), {}))
    else:
        store.create(part_path("r", 0), parquet_bytes(table, {}))
    assert read_keys(store).sort_by("key") == history.keys_of(table).sort_by("key")


def test_merged_key_files_say_the_same_as_those_they_stand_for(tmp_path):
    store = Store(str(tmp_path))

    def finish(number: int) -> None:
        table = rows((f"video {number}", "1", "ok", 1))
        store.create(history.run_file(f"run-{number}", "keys.parquet"), parquet_bytes(history.keys_of(table), {}))
        store.create(history.run_file(f"run-{number}", "_SUCCESS"), b"")

    for night in range(12):
        finish(night)
        before = read_keys(store).sort_by("key")
        history.merge_keys(store, min_runs=4)
        assert read_keys(store).sort_by("key") == before
        assert read_keys(store).num_rows == night + 1
    assert len(store.list("_keys")) == 3


def checked(store: Store, planned: pa.Table, parts: dict[int, pa.Table]) -> pa.Table:
    """The keys of a run with three planned rows in a part, of which these parts are there."""
    numbered = planned.drop_columns("label").add_column(0, "row", pa.array(range(planned.num_rows)))
    numbered = numbered.append_column("attempts", pa.repeat(pa.scalar(1, pa.int32()), planned.num_rows))
    plan = PlanRows.of([numbered], numbered.schema)
    for shard, table in parts.items():
        store.create(part_path("r", shard), parquet_bytes(table, {}))
    shards = Shards(num_rows=planned.num_rows, rows_per_part=3)
    return pa.concat_tables(
        [history.KEYS_SCHEMA.empty_table(), *history.checked_keys(store, "r", plan, shards, result_key=KEY)]
    )


def videos(numbers: Sequence[int], *, etag: str = "e", key: str = KEY) -> pa.Table:
    return rows(*((f"v{n}", None if n == 3 else f"{etag}{n}", "ok", 1) for n in numbers), key=key)


PLANNED = listed(*((f"v{n}", None if n == 3 else f"e{n}") for n in range(8)))


def test_a_run_that_holds_each_planned_row_once_in_any_order_of_a_part_is_complete(tmp_path):
    parts = [videos([0, 1, 2]), videos([5, 4, 3]), videos([6, 7])]
    keys = checked(Store(str(tmp_path)), PLANNED, dict(enumerate(parts)))
    assert keys.equals(history.keys_of(pa.concat_tables(parts)))
    assert checked(Store(str(tmp_path / "empty")), PLANNED.slice(0, 0), {}).num_rows == 0


@pytest.mark.parametrize(
    "parts",
    [
        {0: videos([0, 1, 2]), 1: videos([3, 4, 5])},
        {0: videos([0, 1, 2]), 1: videos([3, 4]), 2: videos([6, 7])},
        {0: videos([0, 1, 2]), 1: videos([3, 4, 5, 4]), 2: videos([6, 7])},
        {0: videos([0, 1, 2]), 1: videos([3, 4, 4]), 2: videos([6, 7])},
        {0: videos([0, 1, 2]), 1: videos([3, 4, 5], etag="x"), 2: videos([6, 7])},
        {0: videos([0, 1, 2]), 1: videos([3, 4, 5], key="other"), 2: videos([6, 7])},
        {0: videos([0, 1, 3]), 1: videos([2, 4, 5]), 2: videos([6, 7])},
        {0: videos([0, 1, 2]), 1: videos([3, 4, 5]), 2: videos([6, 7]), 3: videos([6, 7])},
    ],
    ids=["part lost", "row lost", "doubled", "replaced", "changed", "of another model", "in each other's", "too many"],
)
def test_a_run_whose_rows_do_not_add_up_is_not_called_complete(tmp_path, parts):
    with pytest.raises(RunError, match="_SUCCESS was not written"):
        checked(Store(str(tmp_path)), PLANNED, parts)


def finished(store: Store, run: str, *shards: pa.Table) -> None:
    """A run whose parts hold these rows."""
    for number, table in enumerate(shards):
        store.create(part_path(run, number), parquet_bytes(table, {}))
    keys = history.keys_of(pa.concat_tables(shards))
    store.create(history.run_file(run, "keys.parquet"), parquet_bytes(keys, {"num_parts": len(shards)}))
    store.create(history.run_file(run, "_SUCCESS"), b"")


@pytest.mark.parametrize("merged", [False, True])
def test_the_rows_of_a_lost_part_are_not_known_any_more(tmp_path, merged):
    store = Store(str(tmp_path))
    a, b, c = (rows((name, "1", "ok", 1)) for name in "abc")
    finished(store, "one", a, b)
    finished(store, "two", c)
    if merged:
        history.merge_keys(store, min_runs=2)
        assert len(store.list("_keys")) == 1
    everything = history.keys_of(pa.concat_tables([a, b, c]))
    assert read_keys(store).sort_by("key") == everything.sort_by("key")
    store.delete(part_path("one", 1))
    left = history.keys_of(pa.concat_tables([a, c]))
    assert read_keys(store).sort_by("key") == left.sort_by("key")


def test_keys_of_an_older_version_count_what_speaks_against_the_video(tmp_path):
    store = Store(str(tmp_path))
    old = history.keys_of(rows(("a", "1", "decode_timeout", 2), ("b", "1", "access_denied", 3)))
    store.create(
        history.run_file("r", "keys.parquet"), parquet_bytes(old.select(["key", "status", "attempts"]), {"run_id": "r"})
    )
    read = read_keys(store)
    assert read["video_attempts"].to_pylist() == [2, 0]
    assert read["last_tried_at"].to_pylist() == [None, None]
