"""Every listed object is done, scored, deferred or given up, and none of them in silence."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from tests.scoring.test_history import KEY, listed, rows
from vidray.scoring import history
from vidray.scoring.accounting import Account, Untried, account_for
from vidray.sources.scratch import scratch

NIGHT = datetime.datetime(2026, 11, 20, 2, 0, tzinfo=datetime.UTC)


def account(
    videos: pa.Table, done: pa.Table | None = None, *, key: str = KEY, retry: bool = False, attempts: int = 3, days=0.0
) -> tuple[Account, pa.Table]:
    """Of a night so many days after all rows in ``done`` were tried; and the rows to score, sorted by URI."""
    keys = history.KEYS_SCHEMA.empty_table()
    if done is not None:
        tried = pa.repeat(pa.scalar(NIGHT, history.output.TIME_TYPE), done.num_rows)
        keys = history.keys_of(done.set_column(done.schema.get_field_index("scored_at"), "scored_at", tried))
    now = NIGHT + datetime.timedelta(days=days)
    with scratch() as work:
        work.write("listed", [videos], videos.schema)
        work.write("keys", [keys], keys.schema)
        found = account_for(work.db, result_key=key, retry_failed=retry, max_attempts=attempts, now=now)
        rows = work.db.sql("SELECT uri, attempts FROM account WHERE fate = 'score' ORDER BY uri").to_arrow_table()
    assert found.num_listed == found.num_done + rows.num_rows + found.deferred.count + found.given_up.count
    assert found.num_to_score == rows.num_rows
    return found, rows


def planned(*args, **more) -> list[tuple[str, int]]:
    table = account(*args, **more)[1]
    return list(zip(table["uri"].to_pylist(), table["attempts"].to_pylist(), strict=True))


def test_everything_is_new_to_an_empty_output():
    assert planned(listed(("b", "1"), ("a", "1"))) == [("a", 1), ("b", 1)]


def test_what_was_scored_is_not_scored_again():
    assert planned(listed(("a", "1"), ("b", "1")), rows(("a", "1", "ok", 1))) == [("b", 1)]


def test_an_object_that_changed_is_new():
    assert planned(listed(("a", "2")), rows(("a", "1", "ok", 1))) == [("a", 1)]


def test_another_model_or_other_views_make_everything_new():
    assert planned(listed(("a", "1")), rows(("a", "1", "ok", 1)), key="other") == [("a", 1)]


def test_a_passing_failure_is_tried_again_until_max_attempts():
    assert planned(listed(("a", "1")), rows(("a", "1", "decode_timeout", 2))) == [("a", 3)]
    assert planned(listed(("a", "1")), rows(("a", "1", "decode_timeout", 3))) == []


def test_a_lasting_failure_is_tried_again_only_when_asked_for():
    assert planned(listed(("a", "1")), rows(("a", "1", "corrupt", 1))) == []
    assert planned(listed(("a", "1")), rows(("a", "1", "corrupt", 1)), retry=True) == [("a", 2)]


def test_what_succeeded_at_the_second_attempt_is_done_whatever_the_order_of_rows():
    done = rows(("a", "1", "ok", 2), ("a", "1", "decode_timeout", 1))
    assert planned(listed(("a", "1")), done, retry=True) == []


def test_an_object_without_an_etag_is_known_by_its_uri():
    assert planned(listed(("a", None)), rows(("a", None, "not_found", 1)), days=1) == [("a", 2)]


@pytest.mark.parametrize("status", ["access_denied", "fetch_failed", "not_found", "changed"])
@pytest.mark.parametrize(
    ("num_failures", "days", "is_due"),
    [
        (1, 0.4, False),
        (1, 0.9, True),  # the next night, which begins a little earlier
        (2, 1.0, False),
        (2, 2.0, True),
        (5, 15.0, False),
        (5, 16.0, True),
        (6, 29.0, False),
        (6, 30.0, True),
        (400, 30.0, True),  # for ever
    ],
)
def test_a_failure_of_the_store_is_tried_again_after_longer_and_longer_times(status, num_failures, days, is_due):
    done = rows(*(("a", "1", status, n) for n in range(1, num_failures + 1)), video_attempts=0)
    found, rows_to_score = account(listed(("a", "1")), done, days=days)
    assert rows_to_score.num_rows == is_due
    assert found.deferred == (Untried() if is_due else Untried(count=1, status=status, example="a"))
    assert planned(listed(("a", "1")), done, days=days, retry=True) == [("a", num_failures + 1)]


def test_failures_of_the_store_are_not_held_against_the_video():
    """Twice timed out and five times unreadable: of three tries one is left."""
    done = rows(("a", "1", "decode_timeout", 7), video_attempts=2)
    assert planned(listed(("a", "1")), done) == [("a", 8)]
    found, _ = account(listed(("a", "1")), rows(("a", "1", "decode_timeout", 8), video_attempts=3))
    assert found.given_up.count == 1


def test_what_is_not_tried_any_more_is_counted_with_its_commonest_status_and_an_example():
    done = rows(
        ("a", "1", "corrupt", 1),
        ("b", "1", "decode_timeout", 3),
        ("c", "1", "corrupt", 1),
        ("d", "1", "ok", 1),
        ("e", "1", "access_denied", 3),
    )
    found, to_score = account(listed(*((name, "1") for name in "abcdef")), done)
    assert found.given_up == Untried(count=3, status="corrupt", example="a")
    assert found.deferred.count == 1
    assert (found.num_done, to_score["uri"].to_pylist()) == (1, ["f"])
    assert str(found.given_up) == "3 (mostly corrupt, such as a)"
