"""An output that version 0.1.0 wrote (``tests/data/output-0.1.0``: two nights, three parts, without the columns that
came since) goes on being read, checked, and known as done."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import vidray
from vidray.checkpoints.checkpoint import result_key
from vidray.pages.page import render
from vidray.results.compact import CompactConfig, compact
from vidray.results.comparison import compare_runs, write_profile
from vidray.results.report import scoring_page
from vidray.results.run_rows import ended_runs
from vidray.results.verify import VerifyConfig, verify
from vidray.scoring.history import read_keys
from vidray.scoring.output import PREDICTION_SCHEMA
from vidray.storage.store import Store
from vidray.types import ViewConfig

OLD = Path(__file__).parents[1] / "data" / "output-0.1.0"


@pytest.fixture
def output(tmp_path) -> str:
    return str(shutil.copytree(OLD, tmp_path / "scores"))


def test_its_current_rows_are_read_with_null_for_what_it_did_not_record(output) -> None:
    """0001 was overwritten before the second night, 0003 came then."""
    table = vidray.read(output)
    assert table.schema.equals(PREDICTION_SCHEMA)
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert sorted(rows) == ["0000.mp4", "0001.mp4", "0002.mp4", "0003.mp4", "broken.mp4"]
    seconds = [rows[f"000{number}.mp4"]["duration_seconds"] for number in range(4)]
    assert seconds == pytest.approx([10 / 30, 15 / 30, 12 / 30, 14 / 30])
    assert rows["broken.mp4"]["status"] == "unsupported"
    assert all(row["num_time_jumps"] is row["embedding"] is None for row in rows.values())


def test_what_it_scored_counts_as_done(output) -> None:
    """The hash of the same model and views is still the same, and so is the key of each row."""
    store = Store(output)
    summary = ended_runs(store)[-1].summary
    view = ViewConfig.from_dict(json.loads(summary["view_config"]))
    assert result_key(summary["fingerprint"], view) == summary["result_key"]
    row = vidray.read(output).to_pylist()[0]
    key = hashlib.md5("\x1f".join([row["uri"], row["etag"], summary["result_key"]]).encode()).digest()
    keys = {one["key"]: one for table in read_keys(store) for one in table.to_pylist()}
    assert len(keys) == 6
    assert keys[key] == {"key": key, "status": "ok", "attempts": 1, "video_attempts": 1, "last_tried_at": None}


def test_its_nights_are_checked_merged_and_reported(output) -> None:
    assert str(verify(VerifyConfig(output=output))) == "2 runs, 3 parts, 6 rows: nothing is wrong"
    compact(CompactConfig(output=output))
    assert vidray.read(output).num_rows == 5
    page = scoring_page(output, None, None, with_frames=False)
    figures = {figure.name: figure.value for figure in page.figures}
    counts = {"listed": "5", "done before": "3", "scored": "2", "failed": "0", "deferred": "0", "given up": "0"}
    assert figures == counts
    assert "not recorded" in render(page)
    found = compare_runs(output)
    assert write_profile(found)
    assert [(one.num_before, one.num_after) for one in found.changes if one.name == "status"] == [(4, 2)]
