"""What a fresh run plans: nothing is lost, doubled or misnumbered, and no long video is left for the end."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidray.scoring import history, output
from vidray.scoring.config import ScoreConfig
from vidray.scoring.output import ROW, parquet_bytes
from vidray.scoring.plan import Plan, commit_plan, load_plan
from vidray.scoring.plan_rows import PLAN_SCHEMA
from vidray.scoring.planning import count_new, deal, plan_fresh
from vidray.sources import scratch as scratch_module
from vidray.sources.rows import TAR_MEMBER
from vidray.sources.scratch import scratch
from vidray.storage.store import Store


def dealt(sizes: list[int | None]) -> list[int]:
    """The places in the order of their numbers."""
    with scratch() as work:
        account = pa.table(
            {
                "place": pa.array(range(len(sizes)), pa.int64()),
                "uri": [f"/{place:06d}.mp4" for place in range(len(sizes))],
                "size_bytes": pa.array(sizes, pa.int64()),
                "tar_member": pa.nulls(len(sizes), TAR_MEMBER),
            }
        )
        work.db.register("sizes", account)
        work.db.execute("CREATE TABLE account AS SELECT *, 'score' AS fate FROM sizes")
        deal(work.db)
        rows = work.db.sql(f"SELECT {ROW}, place FROM dealt ORDER BY {ROW}").fetchall()
    assert [row for row, _ in rows] == list(range(len(sizes)))
    return [place for _, place in rows]


@pytest.mark.parametrize("sizes", [[], [5], [3, 1, 2, 7], [None, None, 9], [0, 0, 100], [10] * 50])
def test_where_none_is_long_the_order_stays(sizes) -> None:
    assert dealt(sizes) == list(range(len(sizes)))


def test_one_long_video_comes_first_wherever_it_was_listed() -> None:
    for place in (0, 250, 500):
        sizes = [100] * 501
        sizes[place] = 100_000
        order = dealt(sizes)
        assert order[0] == place
        assert order[1:] == [number for number in range(501) if number != place]


def test_several_are_spread_over_the_first_half_the_longest_first() -> None:
    sizes = [100] * 96 + [1000, 4000, 2000, 3000]
    order = dealt(sizes)
    assert [number for number in order if number >= 96] == [97, 99, 98, 96]
    assert [order.index(number) for number in (97, 99, 98, 96)] == pytest.approx([0, 13, 26, 39], abs=1)
    assert [number for number in order if number < 96] == list(range(96))


@pytest.mark.parametrize("seed", range(20))
def test_videos_are_dealt_as_a_sort_by_their_places_would(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice([None, 0, 1, 10, 100, 10_000, 10**9]) for _ in range(draw.randint(1, 300))]
    numbers = np.array([size or 0 for size in sizes])
    usual = np.median(numbers)
    is_long = (numbers > 8 * usual) & (usual > 0)
    places = np.empty(len(numbers))
    places[~is_long] = np.linspace(0, 1, np.count_nonzero(~is_long), endpoint=False)
    longs = np.flatnonzero(is_long)
    places[longs[np.argsort(-numbers[longs], kind="stable")]] = np.linspace(0, 0.5, len(longs), endpoint=False)
    assert dealt(sizes) == np.lexsort((~is_long, places.round(9))).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_a_plan_has_each_video_once_that_is_listed_and_not_done(tmp_path: Path, monkeypatch, seed: int) -> None:
    """Against a plan that is made of Python lists, and through many small tables and row groups."""
    monkeypatch.setattr(scratch_module, "ROWS_PER_TABLE", 7)
    monkeypatch.setattr(output, "ROWS_PER_GROUP", 11)
    draw = random.Random(seed)
    records = [random_record(draw) for _ in range(draw.randint(1, 400))]
    pq.write_table(pa.Table.from_pylist(records, MANIFEST), tmp_path / "m.parquet", row_group_size=50)
    store = Store(str(tmp_path / "out"))
    first = listed_once(records)
    done = [record for record in first if draw.random() < 0.4]
    leave_keys(store, done, draw)

    plan = planned(store, tmp_path)
    names = [*output.VIDEO, "size_bytes"]
    wanted = [{name: one[name] for name in names} for one in first if one not in done]
    got = [row for table in plan.rows.tables() for row in table.to_pylist()]
    assert [row[ROW] for row in got] == list(range(len(got)))
    assert [{name: row[name] for name in names} for row in got] == wanted
    assert (plan.header.num_listed, plan.header.num_already_done) == (len(first), len(done))

    commit_plan(store, plan)
    stored = load_plan(store, plan.header.run_id)
    assert pa.concat_tables(stored.rows.tables()).equals(pa.concat_tables(plan.rows.tables()))
    shards = [stored.rows_of(shard) for shard in range(stored.shards.count)]
    assert [row for shard in shards for row in shard.to_pylist()] == got
    some = np.array(sorted(draw.sample(range(len(got)), len(got) // 2)), np.int64)
    assert stored.rows.take(some).to_pylist() == [got[number] for number in some]
    half = type(plan.rows).of([plan.rows.take(some)], PLAN_SCHEMA)
    versions = {(got[number]["uri"], got[number]["etag"]) for number in some}
    new = [row["size_bytes"] for row in got if (row["uri"], row["etag"]) not in versions]
    assert count_new(plan.rows, besides=half) == (len(new), sum(new))


MANIFEST = pa.schema(
    [
        *[("uri", pa.string()), ("etag", pa.string()), ("size_bytes", pa.int64())],
        *[("start_seconds", pa.float64()), ("end_seconds", pa.float64())],
    ]
)


def random_record(draw: random.Random) -> dict[str, Any]:
    start = draw.choice([None, None, 1.5, 2.25])
    name = draw.choice(["a", "b/", "ä ", "\U0001f600"])
    return {
        "uri": f"s3://bucket/{name}{draw.randint(0, 60):03d}.mp4",
        "etag": f"{draw.randint(0, 2)}",
        "size_bytes": 100,
        "start_seconds": start,
        "end_seconds": draw.choice([None, (start or 0) + 3]),
    }


def listed_once(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first record of each video or span, sorted."""
    first: dict[tuple[bytes, float, float], dict[str, Any]] = {}
    for one in records:
        first.setdefault((one["uri"].encode(), one["start_seconds"] or 0, one["end_seconds"] or float("inf")), one)
    return [first[whose] for whose in sorted(first)]


def leave_keys(store: Store, done: list[dict[str, Any]], draw: random.Random) -> None:
    """What finished runs leave that scored these videos, of which some failed before."""
    for run in ("r1", "r2"):
        rows = [
            {**{name: one[name] for name in output.VIDEO}, "result_key": "k", "status": status, "attempts": attempts}
            for one in done
            for status, attempts in [("decode_timeout", 1), ("ok", 2)]
            if (status == "ok") == (run == "r2") and (status == "ok" or draw.random() < 0.5)
        ]
        fields = [output.PREDICTION_SCHEMA.field(n) for n in (*output.VIDEO, "result_key", "status", "attempts")]
        keys = history.keys_of(pa.Table.from_pylist(rows, pa.schema(fields)))
        store.create(history.run_file(run, "keys.parquet"), parquet_bytes(keys, {}))


def planned(store: Store, folder: Path) -> Plan:
    config = ScoreConfig(source=(str(folder / "m.parquet"),), model="m", output="o", rows_per_part=9)
    plan, account = plan_fresh(store, config, fingerprint="f", view_config="{}", precision="fp32", result_key="k")
    assert account.num_to_score == plan.rows.num_rows
    return plan
