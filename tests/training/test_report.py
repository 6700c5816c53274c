"""The page of a training says what its numbers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.browser import opened
from tests.support.checkpoints import make_videomae
from vidray.checkpoints.checkpoint import CheckpointMeta, write_vidray_json
from vidray.errors import RunError
from vidray.pages.page import render
from vidray.training.metrics import calibration_error, classification_metrics
from vidray.training.report import Evaluated, checkpoint_page, make_page, wilson_interval
from vidray.training.report_facts import actual_class_histogram, reliability, worst_mistakes
from vidray.types import ViewConfig

LABELS = ("left", "right", "<b>up</b>")
LABELS_N = np.array([0, 0, 1, 1, 2, 2])
SCORES_NC = np.array(
    [[0.9, 0.1, 0], [0.2, 0.8, 0], [0, 1, 0], [0, 0.6, 0.4], [0.95, 0, 0.05], [0.3, 0.3, 0.4]], np.float32
)
"""Rows 1 and 4 are wrong."""


def evaluated(**more: object) -> Evaluated:
    figures = classification_metrics(SCORES_NC, LABELS_N, names=LABELS)
    view = ViewConfig(num_frames=8, size=64)
    return Evaluated(title="m", labels=LABELS, view=view, **{"figures": figures, "metrics_rows": [], **more})


def facts() -> dict[str, object]:
    mistake = {"uri": "/v/4.mp4", "actual": LABELS[2], "actual_score": 0.05, "top_k": [["left", 0.95]]}
    mistake |= {"clip": [0.5, 2.0], "frames": [], "times": [], "problem": "gone"}
    return {
        "labels": list(LABELS),
        "confusion": [[0, 0, 1], [0, 1, 1], [1, 1, 2], [2, 0, 1], [2, 2, 1]],
        "reliability": reliability(SCORES_NC, LABELS_N),
        "actual_class": actual_class_histogram(SCORES_NC, LABELS_N),
        "mistakes": [mistake],
        "num_failed": 0,
    }


def test_the_bins_of_reliability_add_up_to_the_calibration_error():
    bins = reliability(SCORES_NC, LABELS_N)
    assert sum(one["num_videos"] for one in bins) == 6
    gaps = sum(one["num_videos"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / 6
    assert gaps == pytest.approx(calibration_error(SCORES_NC, LABELS_N))


def test_each_video_counts_once_by_the_probability_of_its_actual_class():
    found = actual_class_histogram(SCORES_NC, LABELS_N)
    assert (sum(found["correct"]), sum(found["wrong"])) == (4, 2)
    assert found["correct"][-1] == 1  # the probability 1 is in the last bin
    assert np.flatnonzero(found["wrong"]).tolist() == [1, 4]  # 0.05 and, of float32, 0.2


def test_the_worst_mistake_is_the_surest():
    assert worst_mistakes(SCORES_NC, LABELS_N) == [4, 1]


def test_the_interval_is_wilsons():
    """Newcombe (1998), table I: 81 of 263 is 0.2553 to 0.3662, and 0 of 20 is 0 to 0.1611."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_top_5_of_few_classes_is_no_figure():
    assert "top-5 accuracy" not in {figure.name for figure in make_page(evaluated(facts=facts())).figures}


@pytest.mark.parametrize("name", ["report/facts.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_checkpoint_is_named_on_one_line(tmp_path, name):
    folder = make_videomae(tmp_path / "m", labels=LABELS)
    view = ViewConfig(num_frames=8, size=32)
    meta = CheckpointMeta(view=view, labels=LABELS, family="videomae", metrics=evaluated().figures)
    write_vidray_json(folder, meta)
    assert "accuracy" in checkpoint_page(str(folder))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b'{"labels": ')
    with pytest.raises(RunError, match=f"{name} cannot be read"):
        checkpoint_page(str(folder))


def test_a_checkpoint_without_facts_shows_its_figures_and_says_what_is_missing():
    page = render(make_page(evaluated(training={"base_model": "b", "best_epoch": 2})))
    assert page.count("report/facts.json is missing") == 3
    assert "metrics.jsonl is missing" in page
    assert "67% of 6 videos" in page


def test_a_browser_reads_the_matrix_with_its_axes(tmp_path: Path):
    rows = [{"kind": "train", "step": 2, "epoch": 0, "loss": 1.0}]
    accuracy = {"accuracy": 0.5, "mean_class_accuracy": 0.4, "nll": 1.2}
    rows += [{"kind": "validation", "step": 4 * (epoch + 1), "epoch": epoch, **accuracy} for epoch in range(2)]
    whole = evaluated(facts=facts(), metrics_rows=rows, training={"base_model": "b", "best_epoch": 2})
    (tmp_path / "index.html").write_text(render(make_page(whole)))
    with opened(tmp_path / "index.html", scheme="dark") as (page, noticed):
        assert noticed == []
        assert page.locator(".heat .axis").all_inner_texts() == ["predicted →", "actual ↓"]
        assert page.locator(".heat tbody tr").nth(2).locator("td").nth(0).inner_text().startswith("50%")
        assert page.locator(".heat tbody th").nth(2).inner_text() == "<b>up</b>"
        assert page.locator("svg", has_text="best epoch").count() == 2
        assert page.locator("svg", has_text="mean class accuracy").count() == 1
        assert "clip: 0.5 s to 2 s" in page.locator(".cards").inner_text()
