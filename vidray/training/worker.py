"""One training process from beginning to end: restore, train, evaluate the best with all views, publish."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vidray.cpu_tuning import keep_freed_memory
from vidray.errors import UsageError
from vidray.storage.store import Store
from vidray.training import report
from vidray.training.config import TrainConfig
from vidray.training.data.clip_source import bad_videos_table, check_failure_rate, make_clip_source
from vidray.training.data.pools import MakePool
from vidray.training.evaluate import Judge, Verdicts, evaluate
from vidray.training.loop.build import build_model
from vidray.training.loop.checkpoint_writer import StoreKeeper
from vidray.training.loop.loop import Loop, use_bf16
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.task import Progress, Task
from vidray.training.plan import Plan, read_plan
from vidray.training.publish import Result, publish
from vidray.training.trackers import Trackers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a process may know about where it runs."""

    ranks: Ranks
    make_pool: MakePool | None = None
    """Where videos are decoded; None: threads of this process."""
    notice: Callable[[], bool] = lambda: False
    """True when this process will be ended soon."""
    after_epoch: Callable[[dict[str, Any]], None] = lambda figures: None
    """Called by every rank with the figures of each validation."""
    say: Callable[[str], None] = print


def work(config: TrainConfig, around: Surroundings, *, plan: Plan | None = None) -> dict[str, Any] | None:
    """Train to the end, from wherever the output stands. Returns the figures of the published checkpoint.

    Raises:
        RunError, TooManyFailuresError, UsageError: on all ranks alike where the cause is seen by all.
    """
    ranks = around.ranks
    prepare_torch(config, ranks)
    plan = plan or read_plan(config)
    store = Store(config.output)
    view = config.view(plan.checkpoint.view)
    trained = plan.manifest.rows_of("train")
    model = build_model(plan.checkpoint, config, labels=plan.manifest.labels).to(ranks.device)
    clips = make_clip_source(
        trained, config, rank=ranks.rank, world_size=ranks.world_size, view=view, make_pool=around.make_pool
    )
    keeper = StoreKeeper(store, num_kept=config.keep_states, say=around.say)
    trackers = Trackers(config) if ranks.is_first else None
    try:
        task = Task(
            config=config,
            model=model,
            family=plan.checkpoint.family,
            view=view,
            clips=clips,
            labels=trained["label_id"].to_numpy().astype(np.int64),
            num_labels=len(plan.manifest.labels),
        )
        judge = dataclasses.replace(make_judge(config, plan), make_pool=around.make_pool)
        loop = _make_loop(task, judge, around, keeper, trackers)
        step = keeper.restore(loop, ranks, restart_from=config.restart_from)
        if ranks.is_first and step:
            around.say(f"resuming at step {step}, epoch {loop.progress.epoch + 1} of {config.hyper.epochs}")
        loop.run()
        keeper.finish()
        return _finish(loop, judge, plan, keeper, around)
    finally:
        clips.close()
        keeper.close()
        if trackers:
            trackers.close()


def make_judge(config: TrainConfig, plan: Plan) -> Judge:
    """How the validation part is evaluated in the end: with all views."""
    return Judge(
        table=plan.manifest.rows_of("val"),
        labels=plan.manifest.labels,
        family=plan.checkpoint.family,
        view=config.view(plan.checkpoint.view),
        limits=config.limits,
        num_decoders=config.decoders,
        max_failure_rate=config.max_failure_rate,
    )


def prepare_torch(config: TrainConfig, ranks: Ranks) -> None:
    """Settings of this process that the result depends on."""
    if ranks.device.type == "cpu":
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _make_loop(task: Task, judge: Judge, around: Surroundings, keeper: StoreKeeper, trackers: Trackers | None) -> Loop:
    quick = dataclasses.replace(judge, view=dataclasses.replace(judge.view, num_clips=1, num_crops=1))
    autocast = use_bf16(task.config, around.ranks.device)

    def validate(model: torch.nn.Module) -> dict[str, Any]:
        check_failure_rate(
            task.clips.verdicts, num_videos=task.clips.num_samples, max_rate=task.config.max_failure_rate
        )
        figures, _ = evaluate(model, quick, around.ranks, autocast=autocast)
        figures = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        around.after_epoch(figures)
        return figures

    def tell(row: dict[str, Any]) -> None:
        around.say(line_of(row, task.config.hyper.epochs))
        if trackers:
            trackers.log(row)

    return Loop(task, around.ranks, validate=validate, keeper=keeper, notice=around.notice, report=tell)


def line_of(row: dict[str, Any], num_epochs: int) -> str:
    """A line of metrics for people."""
    start = f"epoch {row['epoch'] + 1}/{num_epochs} step {row['step']}: "
    if row["kind"] == "validation":
        return f"{start}validation accuracy {row['accuracy']:.4f}, NLL {row['nll']:.4f} ({row['num_videos']} videos)"
    waited = row["data_wait_seconds"] / max(row["total_seconds"], 1e-9)
    return f"{start}loss {row['loss']:.4f}, {row['clips_per_second']:.1f} clips/s, {waited:.0%} waiting for data"


def _finish(loop: Loop, judge: Judge, plan: Plan, keeper: StoreKeeper, around: Surroundings) -> dict[str, Any] | None:
    """Evaluate the best weights with all views, and publish them."""
    ranks, progress, config = around.ranks, loop.progress, loop.config
    best = keeper.best(progress.best_step) if ranks.is_first and progress.best_step is not None else None
    loop.task.model.load_state_dict(ranks.from_first(best) or loop.published_tensors())
    model = loop.task.model.eval()
    dtype = torch.bfloat16 if use_bf16(config, ranks.device) and ranks.device.type == "cuda" else torch.float32
    # In the arithmetic that scoring will use, so that the figures are those that scoring will have.
    scored = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    metrics, verdicts = evaluate(scored, judge, ranks, dtype=dtype)
    if not ranks.is_first:
        return metrics
    result = _result(loop, judge, plan, metrics)

    def extra(folder: Path) -> None:
        pq.write_table(_all_bad_videos(progress, judge, verdicts, plan), folder / "bad_videos.parquet")
        (folder / "split.parquet").write_bytes(plan.manifest.public().to_parquet())
        draw(result, judge, verdicts, folder / "report", say=around.say)

    publish(result, Store(config.output), extra=extra)
    around.say(
        f"{Store(config.output).uri} is finished: accuracy {metrics['accuracy']:.4f} on {metrics['num_videos']} "
        f"validation videos with {metrics['num_views']} views each"
    )
    return metrics


def _result(loop: Loop, judge: Judge, plan: Plan, metrics: dict[str, Any]) -> Result:
    progress, config = loop.progress, loop.config
    figures = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return Result(
        model=loop.task.model.cpu(),
        config=config,
        family=judge.family,
        view=judge.view,
        manifest=plan.manifest,
        metrics=metrics,
        rows=[*loop.rows, {"step": progress.step, "epoch": progress.epoch - 1, "kind": "final", **figures}],
        base_model=config.model,
        best_epoch=None if progress.best_epoch is None else progress.best_epoch + 1,
        num_bad=len(progress.verdicts),
    )


def draw(result: Result, judge: Judge, verdicts: Verdicts, folder: Path, *, say: Callable[[str], None]) -> None:
    """The report, if matplotlib is installed."""
    if not report.can_draw():
        say("no report is drawn: matplotlib is not installed (pip install matplotlib)")
        return
    folder.mkdir(parents=True, exist_ok=True)
    report.draw_curves(result.rows, folder / "curves.png")
    report.draw_confusion(result.metrics["confusion"], judge.labels, folder / "confusion.png")
    report.draw_mistakes(report.worst_mistakes(verdicts, judge), judge, folder / "mistakes.png")


def _all_bad_videos(progress: Progress, judge: Judge, verdicts: Verdicts, plan: Plan) -> pa.Table:
    """Those of training, then those of validation."""
    statuses, messages = (
        {int(row): text for row, text in texts.items()} for texts in (progress.verdicts, progress.messages)
    )
    failed = {row: status for row, (status, _) in verdicts.failures.items()}
    why = {row: message for row, (_, message) in verdicts.failures.items()}
    trained = bad_videos_table(plan.manifest.rows_of("train"), statuses, messages)
    return pa.concat_tables([trained, bad_videos_table(judge.table, failed, why)])


def choose_device(config: TrainConfig) -> torch.device:
    """Where this process trains. Raises UsageError if there is no GPU but one was asked for."""
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if config.device == "cuda":
        raise UsageError("--device cuda: there is no GPU here")
    return torch.device("cpu")
