"""A night's page says what its rows say."""

from __future__ import annotations

import datetime
import json
import re

import pyarrow as pa
import pytest

from tests.support.browser import opened
from tests.support.videos import make_video
from vidray.errors import RunError, UsageError
from vidray.results.advice import ADVICE
from vidray.results.report import ReportConfig, report, scoring_page
from vidray.scoring.output import PREDICTION_SCHEMA, parquet_bytes, part_path
from vidray.storage.store import Store
from vidray.types import Status

START = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
HOSTILE = "<script>alert(1)</script>\u202e" + "y" * 4000


def row(uri, *, label="run", score=0.9, status="ok", second=0, **more):
    top_k = [{"label": label, "score": score}] if status == "ok" else None
    base = {"uri": uri, "etag": "1", "status": status, "size_bytes": 5000, "codec": "h264", "duration_seconds": 10.0}
    ours = {"label": label, "score": score, "top_k": top_k} if status == "ok" else {"error": HOSTILE}
    return base | ours | {"scored_at": START + datetime.timedelta(seconds=second)} | more


def write_run(store, run_id, rows, *, key="k", day=1, **more):
    store.create(part_path(run_id, 0), parquet_bytes(pa.Table.from_pylist(rows, PREDICTION_SCHEMA), {}))
    num_scored = sum(one["status"] == "ok" for one in rows)
    num_failed = len(rows) - num_scored
    stages = {"fetch": 0.1, "decode": 0.7, "predict": 0.2}
    timing = {"seconds": 60.0, "start_up_seconds": 5.0, "videos_per_second": 12.0, "stage_seconds": stages}
    timing |= {"stage_share": stages, "stage_busy": stages, "held_back_by": "decode"}
    summary = {"run_id": run_id, "created_at": f"2026-11-{day:02d}T00:00:00+00:00", "result_key": key, "limit": None}
    counts = {"num_listed": len(rows) + 6, "num_already_done": 3, "num_deferred": 2, "num_given_up": 1}
    counts |= {"num_scored": num_scored, "num_failed": num_failed, "max_failure_rate": 0.05, "outcome": "success"}
    names = {"model": "m", "source": ["s3://b/"], "view_config": "{}", "sandbox": ["closed"], "resumed": False}
    data = json.dumps(summary | counts | names | {"this_process": timing} | more).encode()
    store.create(f"_runs/{run_id}/summary.json", data)


@pytest.fixture
def output(tmp_path) -> str:
    """Two nights of one model, a third of another; a video that is there and others that are gone."""
    (tmp_path / "there.mp4").write_bytes(make_video(num_frames=12))
    store = Store(str(tmp_path / "scores"))
    write_run(store, "r1", [row(f"/gone/{n}.mp4", score=0.95, second=n) for n in range(40)])
    second = [row(f"/gone/{n}.mp4", label="jump", score=0.35, second=n) for n in range(40, 80)]
    write_run(store, "r2", [*second, row("/gone/bad.mp4", status="corrupt")], day=2)
    segments = [
        {"start_seconds": start, "end_seconds": start + 2.0, "label": label, "score": 0.7, "top_k": None}
        for start, label in ((0.0, "run"), (2.0, HOSTILE))
    ]
    third = [row(f"/gone/{n}.mp4", label="run" if n < 70 else HOSTILE, score=0.8) for n in range(30, 80)]
    there = row(str(tmp_path / "there.mp4"), score=0.1, segments=segments, etag=None, size_bytes=None)
    failed = [row(HOSTILE, status="access_denied"), row("/gone/bad.mp4", status="corrupt")]
    write_run(store, "r3", [*third, there, *failed], key="other", day=3)
    return store.uri


def tables(output, *, run):
    page = scoring_page(output, run, None, with_frames=False)
    return {table.caption: table for s in page.sections for table in s.blocks if hasattr(table, "caption")}


def test_of_two_models_it_tells_how_often_each_is_right_where_that_is_known(output, tmp_path):
    (tmp_path / "labels.csv").write_text("uri,label\n/gone/40.mp4,run\n/gone/41.mp4,jump\n/gone/42.mp4,run")
    page = scoring_page(output, "r3", "r2", labelled=str(tmp_path / "labels.csv"), with_frames=False)
    (table,) = [one for s in page.sections for one in s.blocks if "How often" in getattr(one, "caption", "")]
    assert [(label, num, old.text, new.text) for label, num, old, new in table.rows] == [
        ("run", 2, "0%", "100%"),
        ("jump", 1, "100%", "0%"),
    ]


def test_the_accounting_adds_up_to_what_was_listed(output):
    figures = {figure.name: int(figure.value) for figure in scoring_page(output, "r2", None, with_frames=False).figures}
    assert figures.pop("listed") == sum(figures.values())
    assert (figures["scored"], figures["failed"], figures["done before"]) == (40, 1, 3)


def test_with_the_same_result_key_it_shows_what_moved(output):
    rows = {row[0]: row for row in tables(output, run="r2")["How far shares moved"].rows}
    assert [name for name, cells in rows.items() if cells[2] == "changed"] == ["label", "score"]
    assert rows["label"][1].text == "1.00"
    assert rows["status"][4] == "40 and 41"


def test_with_another_key_it_compares_all_that_the_other_model_scored(output):
    """Videos 30 to 39 are of the first night, 40 to 79 of the second: 40 to 69 went from jump to run."""
    found = tables(output, run="r3")["Changes of labels, the most frequent first"].rows
    assert [(old, new, num) for old, new, num, _ in found] == [("jump", "run", 30), ("jump", HOSTILE, 10)]


def test_failures_come_with_an_example_and_what_to_do(output):
    cells = tables(output, run="r2")["What failed, and what to do about it"].rows[0]
    assert cells[:3] == ["corrupt", 1, ADVICE[Status.CORRUPT]]
    assert cells[4].text == "/gone/bad.mp4"


def test_every_failure_has_an_advice():
    assert set(ADVICE) == set(Status) - {Status.OK}


def test_a_browser_shows_the_page_with_the_frames_there_are(output, tmp_path):
    report(ReportConfig(output=output, to=str(tmp_path / "page.html")))
    with opened(tmp_path / "page.html", width=360) as (page, noticed):
        assert noticed == []
        cards = page.locator(".cards >> nth=0").locator("> li")
        assert cards.nth(0).locator("h4").inner_text() == "there.mp4"
        frames = cards.nth(0).locator(".strip img")
        assert frames.count() == 6
        assert frames.nth(5).evaluate("image => image.complete && image.naturalWidth > 20")
        assert cards.nth(0).locator(".ribbon i").count() == 2
        assert "not_found" in cards.nth(1).locator(".no-strip").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("table caption").count() == page.locator("table").count()


def test_a_page_that_is_there_is_replaced(output, tmp_path):
    config = ReportConfig(output=output, to=str(tmp_path / "page.html"), run="r1", frames=False)
    report(config)
    first = (tmp_path / "page.html").read_text()
    assert "nothing before it" in first
    report(ReportConfig(output=output, to=config.to, frames=False))
    assert "run r2" in re.sub(r"\s+", " ", (tmp_path / "page.html").read_text())


def test_a_run_that_there_is_not_is_refused_with_those_there_are(output):
    for flags, name in (({"run": "r9"}, "--run"), ({"against": "r9"}, "--against")):
        with pytest.raises(UsageError, match=f"{name}: got 'r9', allowed .*r1, r2, r3"):
            report(ReportConfig(output=output, **flags))


def test_an_output_without_a_run_is_one_line(tmp_path):
    with pytest.raises(RunError, match="holds no run of vidray score that has ended"):
        report(ReportConfig(output=str(tmp_path)))


def test_a_damaged_summary_is_one_line(output):
    store = Store(output)
    store.overwrite("_runs/r2/summary.json", b'{"run_id": "r2", ')
    with pytest.raises(RunError, match=r"_runs/r2/summary\.json cannot be read: "):
        report(ReportConfig(output=output))


def test_the_timeline_of_a_span_begins_with_the_span(tmp_path):
    store = Store(str(tmp_path / "scores"))
    timeline = [{"end_seconds": end, "label": "run", "score": 0.9} for end in (5.0, 7.0)]
    write_run(store, "r1", [row("/gone/1.mp4", timeline=timeline, start_seconds=4.0, end_seconds=7.0)])
    section = next(s for s in scoring_page(store.uri, None, None, with_frames=False).sections if "found" in s.title)
    (card,) = next(block.cards for block in section.blocks if hasattr(block, "cards"))
    assert [(span.start_seconds, span.end_seconds) for span in card.spans] == [(4.0, 5.0), (5.0, 7.0)]


@pytest.mark.parametrize("flags", [{}, {"output": "a", "model": "b"}, {"model": "b", "run": "r"}])
def test_flags_that_contradict_each_other_are_refused(flags):
    with pytest.raises(UsageError, match=r"--output|--run"):
        ReportConfig(**flags)
