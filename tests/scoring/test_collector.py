"""Parts appear whole, once, with every planned row in them."""

from __future__ import annotations

import io
import random
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidray.errors import RunError
from vidray.scoring import output
from vidray.scoring.collector import Collector, LossCounter
from vidray.scoring.output import PREDICTION_SCHEMA, ROW, Shards
from vidray.scoring.plan_rows import PlanRows
from vidray.storage.store import Store

CONSTANTS = {"model": "m", "fingerprint": "f", "view_config": "{}", "result_key": "k", "run_id": "r"}


def plan_rows(num_rows: int) -> pa.Table:
    uris = [f"/videos/{i:05d}.mp4" for i in range(num_rows)]
    before = pa.array([i % 3 for i in range(num_rows)], pa.int32())
    etags = [f"e{i}" for i in range(num_rows)]
    table = pa.table({ROW: np.arange(num_rows), "uri": uris, "etag": etags, "video_attempts": before})
    return output.with_spans(table)


def predicted(plan: pa.Table, rows: list[int]) -> pa.Table:
    table = plan.take(rows).drop_columns(["video_attempts", "start_seconds", "end_seconds"])
    return table.append_column("status", pa.array(["ok"] * len(rows))).append_column(
        "label", pa.array([f"label of {row}" for row in rows])
    )


def full(table: pa.Table) -> pa.Table:
    """``table`` with the prediction columns that a test does not care for."""
    for field in PREDICTION_SCHEMA:
        if field.name not in {*table.column_names, *CONSTANTS, "video_attempts", "start_seconds", "end_seconds"}:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def make_collector(store: Store, plan: pa.Table, *, rows_per_part: int = 10, sealed: frozenset[int] = frozenset()):
    shards = Shards(num_rows=plan.num_rows, rows_per_part=rows_per_part)
    rows = plan.append_column("attempts", pa.array([1] * plan.num_rows, pa.int32()))
    for name, kind in (("path", pa.binary()), ("size_bytes", pa.int64())):
        rows = rows.append_column(name, pa.nulls(plan.num_rows, kind))
    return Collector(
        store=store,
        plan=PlanRows.of([rows], rows.schema),
        shards=shards,
        run_id="r",
        sealed=set(sealed),
        constants=CONSTANTS,
    )


def read_part(store: Store, shard: int) -> pa.Table:
    return pq.read_table(io.BytesIO(store.read(output.part_path("r", shard))))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def test_rows_in_any_order_and_twice_end_as_one_row_each_in_plan_order(store):
    plan = plan_rows(95)
    collector = make_collector(store, plan)
    arrivals = list(range(95)) + random.Random(1).sample(range(95), 40)
    random.Random(2).shuffle(arrivals)
    for start in range(0, len(arrivals), 7):
        collector.add(full(predicted(plan, arrivals[start : start + 7])))
    assert len(collector.missing_rows()) == 0
    parts = [read_part(store, shard) for shard in range(10)]
    assert pa.concat_tables(parts)["uri"].to_pylist() == plan["uri"].to_pylist()
    assert parts[3]["label"].to_pylist() == [f"label of {row}" for row in range(30, 40)]


def test_a_part_is_not_there_before_its_last_row(store):
    plan = plan_rows(10)
    collector = make_collector(store, plan)
    collector.add(full(predicted(plan, list(range(9)))))
    assert store.list("predictions") == []
    collector.add(full(predicted(plan, [9])))
    assert store.list("predictions") == [output.part_path("r", 0)]


def test_what_never_came_is_named(store):
    plan = plan_rows(20)
    collector = make_collector(store, plan, sealed=frozenset({1}))
    collector.add(full(predicted(plan, [0, 1, 2, 3, 5, 6, 7, 9])))
    assert collector.missing_rows().tolist() == [4, 8]


def test_rows_counted_as_new_are_counted_once(store):
    plan = plan_rows(10)
    collector = make_collector(store, plan)
    first = sum(table.num_rows for table in collector.add(full(predicted(plan, [1, 2, 2, 3]))))
    again = sum(table.num_rows for table in collector.add(full(predicted(plan, [3, 4]))))
    assert (first, again) == (3, 1)


def test_every_part_has_the_whole_schema_even_if_a_column_is_all_null(store):
    plan = plan_rows(10)
    make_collector(store, plan).add(full(predicted(plan, list(range(10)))))
    assert read_part(store, 0).schema.remove_metadata().equals(PREDICTION_SCHEMA)


def test_a_finished_part_is_left_untouched_by_a_second_driver(store):
    plan = plan_rows(10)
    make_collector(store, plan).add(full(predicted(plan, list(range(10)))))
    before = store.read(output.part_path("r", 0))
    make_collector(store, plan).add(full(predicted(plan, list(range(10)))))
    assert store.read(output.part_path("r", 0)) == before


def test_a_part_with_other_videos_is_never_adopted(store):
    plan = plan_rows(10)
    make_collector(store, plan).add(full(predicted(plan, list(range(10)))))
    other = plan.set_column(2, "etag", pa.array(["changed"] * 10))
    with pytest.raises(RunError, match="holds other videos"):
        make_collector(store, other).add(full(predicted(other, list(range(10)))))


def test_two_drivers_of_one_run_at_once_leave_each_row_once(store):
    plan = plan_rows(200)

    def drive(seed: int) -> None:
        collector = make_collector(store, plan)
        order = list(range(200))
        random.Random(seed).shuffle(order)
        for start in range(0, 200, 9):
            collector.add(full(predicted(plan, order[start : start + 9])))

    threads = [threading.Thread(target=drive, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parts = pa.concat_tables([read_part(store, shard) for shard in range(20)])
    assert parts["uri"].to_pylist() == plan["uri"].to_pylist()


def test_a_driver_that_lost_its_lease_seals_nothing(store):
    plan = plan_rows(10)

    def refuse() -> None:
        raise RunError("lost")

    collector = make_collector(store, plan)
    collector._before_seal = refuse
    with pytest.raises(RunError, match="lost"):
        collector.add(full(predicted(plan, list(range(10)))))
    assert store.list("predictions") == []


@pytest.mark.parametrize(
    ("path", "shard"),
    [
        ("predictions/run=a/part-00007.parquet", 7),
        ("part-123456.parquet", 123456),
        ("predictions/run=a/part-7.parquet", None),
        ("predictions/run=a/part-00007.parquet.tmp", None),
        ("predictions/run=a/.part-00007.parquet", None),
    ],
)
def test_only_parts_count_as_parts(path, shard):
    assert output.shard_of_part(path) == shard


def test_a_row_is_given_up_when_it_is_lost_for_the_third_time():
    losses = LossCounter()
    assert losses.add([3, 5]) == []
    assert losses.add(np.array([5])) == []
    assert losses.add([3, 5, 8]) == [5]


def test_only_what_speaks_against_the_video_is_counted_as_its_attempt(store):
    plan = plan_rows(10)
    statuses = ["ok", "corrupt", "access_denied", "decode_timeout", "fetch_failed", "not_found", "changed", *["ok"] * 3]
    table = full(predicted(plan, list(range(10))))
    at = table.schema.get_field_index("status")
    make_collector(store, plan).add(table.set_column(at, "status", pa.array(statuses)))
    assert read_part(store, 0)["video_attempts"].to_pylist() == [0, 2, 2, 1, 1, 2, 0, 1, 2, 0]
