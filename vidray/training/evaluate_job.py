"""Evaluation of a finished checkpoint on labelled videos: figures, predictions, and a report."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vidray.checkpoints.checkpoint import Checkpoint, load_model
from vidray.cpu_tuning import keep_freed_memory
from vidray.models.processors import check_view
from vidray.pages.words import file_name
from vidray.progress import StepLine, format_seconds
from vidray.storage.store import Store
from vidray.training.config import EvaluateConfig
from vidray.training.device import choose_device, use_bf16
from vidray.training.evaluate import EvalResults, EvalSpec, evaluate, video_scores
from vidray.training.loop.checkpoint_writer import write_bad_videos
from vidray.training.loop.ranks import Ranks
from vidray.training.report import Evaluated, write_report

_LOG_SECONDS = 5.0
_LOGGED_FIGURES = (
    "num_videos",
    "num_failed",
    "num_views",
    "accuracy",
    "top5_accuracy",
    "mean_class_accuracy",
    "nll",
    "ece",
)


def evaluate_checkpoint(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    table: pa.Table,
    store: Store | None,
    *,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Figures of a checkpoint on the rows of ``table``, in this process."""
    device = choose_device(config.device)
    dtype = torch.bfloat16 if use_bf16(config.precision, device) else torch.float32
    view = config.view(checkpoint.view)
    check_view(view, config=checkpoint.config, family=checkpoint.family)
    spec = EvalSpec(
        table=table,
        labels=checkpoint.labels,
        family=checkpoint.family,
        view=view,
        limits=config.limits,
        problem_type=checkpoint.meta.problem_type,
        num_decoders=config.decoders,
        max_failure_rate=config.max_failure_rate,
        on_video=_Counter(table.num_rows, log).count,
        keep_bad_videos=functools.partial(write_bad_videos, store) if store is not None else lambda table: None,
    )
    if device.type == "cpu":
        keep_freed_memory()
    model = load_model(checkpoint, dtype=dtype).to(device)
    figures, results = evaluate(model, spec, Ranks(device=device), dtype=dtype)
    log("\n".join(f"{name}: {figures[name]:.6g}" for name in _LOGGED_FIGURES))
    if store is not None:
        _write_results(config, figures, results, spec, store)
        log(f"written to {store.uri}: metrics.json, evaluation.parquet, report/")
    return figures


class _Counter:
    """Logs how far the evaluation is, now and then."""

    def __init__(self, num_videos: int, log: Callable[[str], None]) -> None:
        self._num_videos, self._log = num_videos, log
        self._num_done, self._started = 0, time.perf_counter()
        self._next = self._started + _LOG_SECONDS

    def count(self) -> None:
        """One more video."""
        self._num_done += 1
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = now + _LOG_SECONDS
        rate = self._num_done / (now - self._started)
        left = format_seconds((self._num_videos - self._num_done) / rate)
        text = f"{self._num_done:,} of {self._num_videos:,} videos · {rate:.1f} videos/s · {left} left"
        self._log(StepLine(text, done=self._num_done, total=self._num_videos))


def predictions_table(results: EvalResults, spec: EvalSpec) -> pa.Table:
    """One row per video: uri, label, status, error, the predicted label and its score."""
    rows = []
    for row, values in enumerate(spec.table.select(["uri", "label"]).to_pylist()):
        if (bad := results.bad_videos.get(row)) is not None:
            rows.append({**values, "status": bad.status, "error": bad.message, "predicted": None, "score": None})
            continue
        scores = video_scores(results.logits[row], spec)
        best = int(scores.argmax())
        prediction = {"predicted": spec.labels[best], "score": float(scores[best])}
        rows.append({**values, "status": "ok", "error": None, **prediction})
    names = ("uri", "label", "status", "error", "predicted")
    return pa.Table.from_pylist(rows, pa.schema([*((name, pa.string()) for name in names), ("score", pa.float64())]))


def _write_results(
    config: EvaluateConfig, figures: dict[str, Any], results: EvalResults, spec: EvalSpec, store: Store
) -> None:
    """Metrics, predictions and a report; an earlier evaluation's are replaced."""
    with tempfile.TemporaryDirectory(prefix="vidray-evaluate-") as temporary:
        folder = Path(temporary)
        (folder / "metrics.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False))
        pq.write_table(predictions_table(results, spec), folder / "evaluation.parquet")
        title = f"Evaluation of {file_name(config.model.rstrip('/'))}"
        evaluated = Evaluated(title=title, labels=spec.labels, view=spec.view, figures=figures)
        write_report(folder, evaluated, results, spec)
        for root, _, names in os.walk(folder):
            for name in sorted(names):
                path = Path(root) / name
                store.overwrite(path.relative_to(folder).as_posix(), path.read_bytes())
