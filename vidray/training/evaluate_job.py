"""Evaluation of a finished checkpoint on labelled videos: figures, predictions, and a report."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vidray.checkpoints.checkpoint import Checkpoint, load_model
from vidray.cpu_tuning import keep_freed_memory
from vidray.errors import UsageError
from vidray.models.processors import check_view
from vidray.storage.store import Store
from vidray.training import report
from vidray.training.config import EvaluateConfig
from vidray.training.evaluate import Judge, Verdicts, evaluate, video_scores
from vidray.training.loop.checkpoint_writer import replace
from vidray.training.loop.ranks import Ranks

_SHOWN = ("num_videos", "num_failed", "num_views", "accuracy", "top5_accuracy", "mean_class_accuracy", "nll", "ece")


def evaluate_checkpoint(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    table: pa.Table,
    store: Store | None,
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Figures of a checkpoint on the rows of ``table``, in this process."""
    device = _device(config)
    dtype = _dtype(config, device)
    view = config.view(checkpoint.view)
    check_view(view, config=checkpoint.config, family=checkpoint.family)
    judge = Judge(
        table=table,
        labels=checkpoint.labels,
        family=checkpoint.family,
        view=view,
        limits=config.limits,
        problem_type=checkpoint.meta.problem_type,
        num_decoders=config.decoders,
        max_failure_rate=config.max_failure_rate,
    )
    if device.type == "cpu":
        keep_freed_memory()
    model = load_model(checkpoint, dtype=dtype).to(device)
    figures, verdicts = evaluate(model, judge, Ranks(device=device), dtype=dtype)
    say("\n".join(f"{name}: {figures[name]:.6g}" for name in _SHOWN))
    if store is not None:
        _write(figures, verdicts, judge, store)
        say(f"written to {store.uri}: metrics.json, evaluation.parquet, report/")
    return figures


def predictions_table(verdicts: Verdicts, judge: Judge) -> pa.Table:
    """One row per video: uri, label, what was said, its score, and the status."""
    rows = []
    for row, values in enumerate(judge.table.select(["uri", "label"]).to_pylist()):
        if row in verdicts.failures:
            status, message = verdicts.failures[row]
            rows.append({**values, "status": status, "error": message, "predicted": None, "score": None})
            continue
        scores = video_scores(verdicts.logits[row], judge)
        best = int(scores.argmax())
        said = {"predicted": judge.labels[best], "score": float(scores[best])}
        rows.append({**values, "status": "ok", "error": None, **said})
    names = ("uri", "label", "status", "error", "predicted")
    return pa.Table.from_pylist(rows, pa.schema([*((name, pa.string()) for name in names), ("score", pa.float64())]))


def _write(figures: dict[str, Any], verdicts: Verdicts, judge: Judge, store: Store) -> None:
    """Metrics, predictions and pictures; an earlier evaluation's are replaced."""
    with tempfile.TemporaryDirectory(prefix="vidray-evaluate-") as temporary:
        folder = Path(temporary)
        (folder / "metrics.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False))
        pq.write_table(predictions_table(verdicts, judge), folder / "evaluation.parquet")
        (folder / "report").mkdir()
        if report.can_draw():
            report.draw_confusion(figures["confusion"], judge.labels, folder / "report" / "confusion.png")
            report.draw_mistakes(report.worst_mistakes(verdicts, judge), judge, folder / "report" / "mistakes.png")
        for root, _, names in os.walk(folder):
            for name in sorted(names):
                path = Path(root) / name
                replace(store, path.relative_to(folder).as_posix(), path.read_bytes())


def _device(config: EvaluateConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no GPU here")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _dtype(config: EvaluateConfig, device: torch.device) -> torch.dtype:
    """As scoring chooses: bf16 where a GPU has it."""
    if config.precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.bfloat16 if config.precision == "bf16" else torch.float32
