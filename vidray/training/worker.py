"""One training process from beginning to end: restore, train, finish."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vidray import monitoring
from vidray.progress import StepLine
from vidray.storage.store import Store
from vidray.training.config import TrainConfig
from vidray.training.data.bad_videos import BAD_VIDEOS_FILE, KeepBadVideos, check_failure_rate
from vidray.training.data.clip_source import make_clip_source
from vidray.training.data.pools import MakeClipPool
from vidray.training.device import prepare_torch, use_bf16
from vidray.training.evaluate import EvalSpec, evaluate
from vidray.training.finish import finish
from vidray.training.loop.build import build_model
from vidray.training.loop.checkpoint_writer import CheckpointWriter, write_bad_videos
from vidray.training.loop.loop import Loop
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.task import TrainingTask
from vidray.training.plan import TrainingPlan
from vidray.training.trackers import Trackers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WorkerContext:
    """What a process may know about where it runs."""

    ranks: Ranks
    make_pool: MakeClipPool | None = None
    """Where videos are decoded; None: threads of this process."""
    is_preempted: Callable[[], bool] = lambda: False
    """True when this process will be ended soon."""
    after_epoch: Callable[[dict[str, Any]], None] = lambda figures: None
    """Called by every rank with the figures of each validation."""
    check_lease: Callable[[], None] = lambda: None
    """Raises if the output is another run's by now; called before everything that is written."""
    log: Callable[[str], None] = print
    """Prints a line for the user."""


def run_worker(config: TrainConfig, context: WorkerContext, *, plan: TrainingPlan) -> dict[str, Any]:
    """Train to the end, from wherever the output stands. Returns the figures of the published checkpoint.

    Raises:
        RunError, TooManyFailuresError, UsageError: on all ranks alike where the cause is seen by all.
    """
    ranks = context.ranks
    prepare_torch(config, ranks.device)
    store = Store(config.output)
    task = _make_task(config, plan, context)
    writer = CheckpointWriter(store, num_kept=config.keep_states, log=context.log, check_lease=context.check_lease)
    trackers = Trackers(config) if ranks.is_first else None
    try:
        keep = functools.partial(_keep_bad_videos, store=store, context=context)
        spec = make_eval_spec(config, plan, make_pool=context.make_pool, keep_bad_videos=keep)
        loop = _make_loop(task, spec, plan.manifest.rows_of("train"), context, writer, trackers)
        _resume(loop, writer, context)
        loop.run()
        writer.finish()
        return finish(loop, spec, plan, writer, store, log=context.log, check_lease=context.check_lease)
    finally:
        task.clips.close()
        writer.close()
        if trackers:
            trackers.close()


def _keep_bad_videos(table: pa.Table, *, store: Store, context: WorkerContext) -> str:
    if context.ranks.is_first:
        context.check_lease()
        write_bad_videos(store, table)
    return store.uri_for(BAD_VIDEOS_FILE)


def make_eval_spec(
    config: TrainConfig,
    plan: TrainingPlan,
    *,
    make_pool: MakeClipPool | None = None,
    keep_bad_videos: KeepBadVideos = lambda table: None,
) -> EvalSpec:
    """How the validation part is evaluated in the end: with all views."""
    return EvalSpec(
        table=plan.manifest.rows_of("val"),
        labels=plan.manifest.labels,
        family=plan.checkpoint.family,
        view=config.view(plan.checkpoint.view),
        limits=config.limits,
        num_decoders=config.decoders,
        make_pool=make_pool,
        max_failure_rate=config.max_failure_rate,
        keep_bad_videos=keep_bad_videos,
    )


def _make_task(config: TrainConfig, plan: TrainingPlan, context: WorkerContext) -> TrainingTask:
    ranks, view, table = context.ranks, config.view(plan.checkpoint.view), plan.manifest.rows_of("train")
    return TrainingTask(
        config=config,
        model=build_model(plan.checkpoint, config, labels=plan.manifest.labels).to(ranks.device),
        family=plan.checkpoint.family,
        view=view,
        clips=make_clip_source(
            table, config, rank=ranks.rank, world_size=ranks.world_size, view=view, make_pool=context.make_pool
        ),
        labels=table["label_id"].to_numpy().astype(np.int64),
        num_labels=len(plan.manifest.labels),
    )


def _make_loop(
    task: TrainingTask,
    spec: EvalSpec,
    rows: pa.Table,
    context: WorkerContext,
    writer: CheckpointWriter,
    trackers: Trackers | None,
) -> Loop:
    one_view = dataclasses.replace(spec, view=dataclasses.replace(spec.view, num_clips=1, num_crops=1))
    autocast = use_bf16(task.config.precision, context.ranks.device)

    def validate(model: torch.nn.Module) -> dict[str, Any]:
        check_failure_rate(
            rows,
            task.clips.bad_videos,
            max_rate=task.config.max_failure_rate,
            what="training",
            keep=spec.keep_bad_videos,
        )
        figures, _ = evaluate(model, one_view, context.ranks, autocast=autocast)
        figures = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        context.after_epoch(figures)
        return figures

    def report(row: dict[str, Any]) -> None:
        line = line_of(row, num_epochs=task.config.hyper.epochs, num_steps=loop.num_steps)
        is_step = row["kind"] == "train"
        context.log(StepLine(line, done=row["step"], total=loop.num_steps) if is_step else line)
        if is_step:
            record_steps(row, num_left=loop.num_steps - row["step"])
        if trackers:
            trackers.log(row)

    loop = Loop(task, context.ranks, validate=validate, writer=writer, is_preempted=context.is_preempted, report=report)
    return loop


def _resume(loop: Loop, writer: CheckpointWriter, context: WorkerContext) -> None:
    """Go on from the last state, if there is one."""
    state = writer.load_last(context.ranks, restart_from=loop.config.restart_from)
    if state is not None:
        loop.restore(state)
        if context.ranks.is_first:
            context.log(f"resuming at step {state.step}, epoch {loop.position.epoch + 1} of {loop.hyper.epochs}")


def record_steps(row: dict[str, Any], *, num_left: int) -> None:
    """Tell a monitoring system of the steps that a line of metrics is about."""
    monitoring.record(monitoring.TRAIN_STEPS, row["num_steps"])
    monitoring.record(monitoring.TRAIN_SECONDS, row["total_seconds"])
    monitoring.record(monitoring.TRAIN_WAIT_SECONDS, row["data_wait_seconds"])
    monitoring.record(monitoring.TRAIN_STEPS_LEFT, num_left)


def line_of(row: dict[str, Any], *, num_epochs: int, num_steps: int) -> str:
    """A line of metrics for people.

    Args:
        num_steps: of the whole run.
    """
    start = f"epoch {row['epoch'] + 1}/{num_epochs} step {row['step']}: "
    if row["kind"] == "validation":
        return f"{start}validation accuracy {row['accuracy']:.4f}, NLL {row['nll']:.4f} ({row['num_videos']} videos)"
    waited = row["data_wait_seconds"] / max(row["total_seconds"], 1e-9)
    left = (num_steps - row["step"]) * row["total_seconds"] / row["num_steps"]
    return (
        f"{start}loss {row['loss']:.4f}, learning rate {row['learning_rate']:.2g}, "
        f"{row['clips_per_second']:.1f} clips/s, {waited:.0%} waiting for data, {timedelta(seconds=round(left))} left"
    )
