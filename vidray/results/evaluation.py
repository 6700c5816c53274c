"""`vidray evaluate`: of whole videos by the evaluation of training, of moments by scoring windows first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidray.errors import UsageError
from vidray.progress import Progress
from vidray.results.detection import mean_average_precision
from vidray.results.moments import Moment, merge
from vidray.results.read import read
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.storage.folder_kind import require_kind
from vidray.storage.store import Store
from vidray.training import job
from vidray.training.config import EvaluateConfig


def evaluate(
    config: EvaluateConfig, *, log: Callable[[str], None] = print, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate a checkpoint; returns its figures, and writes them to ``config.output`` if there is one.

    Args:
        progress: of the score run that finds moments; None: on standard error.

    Raises:
        UsageError, RunError, TooManyFailuresError.
    """
    if config.segments is None:
        return job.evaluate(config, log=log)
    return evaluate_segments(config, log=log, progress=progress)


def evaluate_segments(
    config: EvaluateConfig, *, log: Callable[[str], None], progress: Progress | None
) -> dict[str, Any]:
    """Scores the windows of all labelled videos, merges them to moments, and holds these against the labels.

    Returns:
        ``num_videos``, ``num_failed`` (they count as without moments), ``num_labelled`` and ``num_found`` moments, and
        ``average_precision``: of ``mean_average_precision``.

    Raises:
        UsageError: a label is not the model's, or has no end.
        RunError, TooManyFailuresError: as a score run.
    """
    if config.output is not None:
        require_kind(Store(config.output), "evaluation")
    with tempfile.TemporaryDirectory(prefix="vidray-evaluate-") as temporary:
        manifest = Path(temporary, "videos.jsonl")
        output = f"{temporary if config.output is None else config.output.rstrip('/')}/scores"
        scoring = ScoreJob(_score_config(config, source=str(manifest), output=output), progress=progress)
        labelled = job.labelled_rows(config, scoring.checkpoint.labels).to_pylist()
        truths = [_truth(row) for row in labelled]
        places = {row["path"].decode() if row["path"] else row["uri"] for row in labelled}
        manifest.write_text("".join(json.dumps({"uri": place}) + "\n" for place in sorted(places)))
        scoring.run()
        rows = read(output, columns=["uri", "result_key", "status", "segments"]).to_pylist()
    wanted = {truth.uri for truth in truths}
    rows = [row for row in rows if row["result_key"] == scoring.result_key and row["uri"] in wanted]
    found = [m for row in rows for m in merge(row["uri"], row["segments"] or [], min_score=config.min_score)]
    figures = {
        "num_videos": len(wanted),
        "num_failed": sum(row["status"] != "ok" for row in rows),
        "num_labelled": len(truths),
        "num_found": len(found),
        "average_precision": mean_average_precision(found, truths),
    }
    log(format_figures(figures))
    if config.output is not None:
        data = json.dumps(figures, indent=2, ensure_ascii=False).encode()
        Store(config.output).overwrite("metrics.json", data)
        log(f"written to {config.output}: metrics.json")
    return figures


def format_figures(figures: dict[str, Any]) -> str:
    """Counts, and a line for each class, the mean first."""
    precision = figures["average_precision"]
    title = "average precision at tIoU"
    width = max(len(name) for name in (title, *precision))
    counts = [f"{name}: {figures[name]:,}" for name in ("num_videos", "num_failed", "num_labelled", "num_found")]
    head = f"{title:{width}}  " + "  ".join(f"{at:>5}" for at in precision["mean"])
    lines = [
        f"{label:{width}}  " + "  ".join(f"{value:5.3f}" for value in values.values())
        for label, values in precision.items()
    ]
    return "\n".join([*counts, head, *lines])


def _truth(row: dict[str, Any]) -> Moment:
    start, end = row["start_seconds"] or 0.0, row["end_seconds"]
    if end is None:
        raise UsageError(f"--segments: {row['uri']} is labelled {row['label']!r} without an end; `end` must be there")
    return Moment(uri=row["uri"], start_seconds=start, end_seconds=end, label=row["label"], score=1.0, mean_score=1.0)


def _score_config(config: EvaluateConfig, *, source: str, output: str) -> ScoreConfig:
    same = ("segments", "segment_stride", "views", "span", "aggregation", "square_pixels", "video_stream", "decoder")
    run = ("precision", "secret_parameters", "store_deadline_seconds", "max_failure_rate", "limits", "device")
    values = {name: getattr(config, name) for name in (*same, *run)}
    return ScoreConfig(source=(source,), model=config.model, output=output, **values)
