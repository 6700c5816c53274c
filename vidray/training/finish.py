"""The end of a run: evaluates the best weights with all views, and publishes them with a report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vidray.pages.words import file_name
from vidray.storage.store import Store
from vidray.training import report
from vidray.training.data.bad_videos import BAD_VIDEOS_FILE, bad_videos_table
from vidray.training.device import use_bf16
from vidray.training.evaluate import EvalResults, EvalSpec, evaluate
from vidray.training.loop.checkpoint_writer import CheckpointWriter
from vidray.training.loop.loop import Loop
from vidray.training.plan import TrainingPlan
from vidray.training.publish import TrainingResult, publish, training_facts


def finish(
    loop: Loop,
    spec: EvalSpec,
    plan: TrainingPlan,
    writer: CheckpointWriter,
    store: Store,
    *,
    log: Callable[[str], None],
    check_lease: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluate the best weights on all ranks, and publish them from the first. Returns the figures.

    Args:
        loop: has trained to its end.
        spec: the validation part, with all views.
    """
    _load_best(loop, writer)
    metrics, results = _evaluate(loop, spec)
    if not loop.ranks.is_first:
        return metrics
    result = _training_result(loop, spec, plan, metrics)

    def add_files(folder: Path) -> None:
        pq.write_table(_bad_videos(loop, spec, results, plan), folder / BAD_VIDEOS_FILE)
        (folder / "split.parquet").write_bytes(plan.manifest.public().to_parquet())
        report.write_report(folder, _evaluated(result, store), results, spec)

    publish(result, store, add_files=add_files, check_lease=check_lease)
    log(
        f"{store.uri} is finished: accuracy {metrics['accuracy']:.4f} on {metrics['num_videos']} "
        f"validation videos with {metrics['num_views']} views each"
    )
    return metrics


def _load_best(loop: Loop, writer: CheckpointWriter) -> None:
    """Put the best weights into the model, on all ranks; the last ones if there are no best or they are damaged."""
    ranks, best_step = loop.ranks, loop.position.best_step
    best = writer.load_best(best_step) if ranks.is_first and best_step is not None else None
    loop.task.model.load_state_dict(ranks.from_first(best) or loop.published_tensors())


def _evaluate(loop: Loop, spec: EvalSpec) -> tuple[dict[str, Any], EvalResults]:
    """In the arithmetic that scoring will use, so that the figures are those that scoring will have."""
    ranks, model = loop.ranks, loop.task.model.eval()
    if use_bf16(loop.config.precision, ranks.device) and ranks.device.type == "cuda":
        return evaluate(copy.deepcopy(model).to(torch.bfloat16), spec, ranks, dtype=torch.bfloat16)
    return evaluate(model, spec, ranks)


def _training_result(loop: Loop, spec: EvalSpec, plan: TrainingPlan, metrics: dict[str, Any]) -> TrainingResult:
    position, config = loop.position, loop.config
    figures = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    final_row = {"step": position.step, "epoch": position.epoch - 1, "kind": "final", **figures}
    return TrainingResult(
        model=loop.task.model.cpu(),
        config=config,
        family=spec.family,
        view=spec.view,
        manifest=plan.manifest,
        metrics=metrics,
        metrics_rows=[*loop.metrics_rows, final_row],
        base_model=config.model,
        best_epoch=None if position.best_epoch is None else position.best_epoch + 1,
        num_bad_videos=len(position.bad_videos),
    )


def _evaluated(result: TrainingResult, store: Store) -> report.Evaluated:
    return report.Evaluated(
        title=file_name(store.uri.rstrip("/")),
        labels=result.manifest.labels,
        view=result.view,
        figures=result.metrics,
        metrics_rows=result.metrics_rows,
        training=training_facts(result),
    )


def _bad_videos(loop: Loop, spec: EvalSpec, results: EvalResults, plan: TrainingPlan) -> pa.Table:
    """Those of training, then those of validation."""
    trained = bad_videos_table(plan.manifest.rows_of("train"), loop.position.bad_videos)
    return pa.concat_tables([trained, bad_videos_table(spec.table, results.bad_videos)])
