"""What is said to have changed, has."""

from __future__ import annotations

import math

import duckdb
import numpy as np
import pytest

from vidray.results.changes import changes, distance_by_chance, flips, jensen_shannon

ROW = """(uri VARCHAR, etag VARCHAR, status VARCHAR, label VARCHAR, score FLOAT, codec VARCHAR, duration_seconds DOUBLE,
size_bytes BIGINT, start_seconds DOUBLE, end_seconds DOUBLE)"""


@pytest.fixture
def db():
    with duckdb.connect() as connection:
        for name in ("before", "after"):
            connection.execute(f"CREATE TABLE {name} {ROW}")
        yield connection


def fill(db, table, number, *, label="run", score=0.9, codec="h264", status="ok", start=0):
    db.execute(
        f"""INSERT INTO {table} SELECT 'v' || i, '1', '{status}', ?, ?, '{codec}', 10, 5000, NULL, NULL
        FROM range({start}, {start + number}) t(i)""",
        [label, None if label is None else score],
    )


def test_the_distance_is_that_of_lin_1991():
    assert jensen_shannon(np.array([5, 5]), np.array([50, 50])) == 0
    assert jensen_shannon(np.array([4, 0]), np.array([0, 9])) == 1
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): (log2(4/3) + (log2(2/3) + log2(2)) / 2) / 2
    by_hand = (math.log2(4 / 3) + (math.log2(2 / 3) + 1) / 2) / 2
    assert jensen_shannon(np.array([7, 0]), np.array([3, 3])) == pytest.approx(math.sqrt(by_hand))


def test_chance_is_what_samples_of_one_distribution_differ_by():
    rng = np.random.default_rng(0)
    shares = np.full(6, 1 / 6)
    found = [jensen_shannon(rng.multinomial(400, shares), rng.multinomial(200, shares)) ** 2 for _ in range(2000)]
    assert math.sqrt(np.mean(found)) == pytest.approx(distance_by_chance(6, 400, 200), rel=0.05)


def test_what_moved_is_marked_and_what_stayed_is_not(db):
    fill(db, "before", 500)
    fill(db, "before", 500, label="jump", score=0.35, start=500)
    fill(db, "after", 900, codec="av1")
    fill(db, "after", 100, label="jump", score=0.35, start=900)
    found = {change.name: change for change in changes(db)}
    assert {name for name, change in found.items() if change.is_marked} == {"label", "score", "codec"}
    assert set(found["codec"].moved) == {("h264", 1000, 100), ("av1", 0, 900)}
    assert set(found["label"].moved) == {("run", 500, 900), ("jump", 500, 100)}
    assert set(found["score"].moved) == {("0.9 to 1.0", 500, 900), ("0.3 to 0.4", 500, 100)}
    assert found["size"].moved == [("4.1 kB to 8.2 kB", 1000, 1000)]


def test_a_few_videos_that_differ_by_chance_are_not_marked(db):
    fill(db, "before", 3)
    fill(db, "before", 2, label="jump", start=3)
    fill(db, "after", 2)
    fill(db, "after", 3, label="jump", start=2)
    (label,) = (change for change in changes(db) if change.name == "label")
    assert label.distance > 0.1
    assert not label.is_marked


def test_flips_count_versions_that_both_scored(db):
    fill(db, "before", 10)
    fill(db, "after", 6)
    fill(db, "after", 3, label="jump", score=0.8, start=6)
    fill(db, "after", 1, label=None, status="corrupt", start=9)
    db.execute("UPDATE after SET etag = '2' WHERE uri = 'v6'")
    found = flips(db)
    assert (found.num_common, found.num_changed) == (8, 2)
    assert found.pairs == [("run", "jump", 2)]
    assert [example[0] for example in found.examples] == ["v7", "v8"]


def test_nothing_before_is_no_change(db):
    fill(db, "after", 5)
    assert all(change.distance == 0 for change in changes(db))
    assert flips(db).num_common == 0
