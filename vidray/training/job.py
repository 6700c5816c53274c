"""The commands of training: decides where to train, and refuses early what cannot work."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vidray.checkpoints.checkpoint import VIDRAY_FILE
from vidray.cluster import named_cluster
from vidray.cpu_tuning import ENVIRONMENT
from vidray.errors import UsageError
from vidray.sources.signed_urls import holds_secrets
from vidray.storage.folder_kind import require_kind
from vidray.storage.lease import Lease, LeaseGuard
from vidray.storage.store import Store
from vidray.training.config import EvaluateConfig, TrainConfig
from vidray.training.plan import TrainingPlan, prepare_output

if TYPE_CHECKING:
    import pyarrow as pa


def train(config: TrainConfig, *, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Train until the output is finished, or find it so. Returns the published figures.

    Raises UsageError, RunError or TooManyFailuresError.
    """
    from vidray.training.trackers import check_trackers

    os.environ.setdefault("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"])  # before torch is loaded
    check_trackers(config)
    config = _with_absolute_paths(config)
    plan = prepare_output(config, log=log)
    store = Store(config.output)
    if plan.is_finished:
        accuracy = _published_metrics(store)["accuracy"]
        log(f"{store.uri} is finished already, with accuracy {accuracy:.4f}; nothing is trained")
    else:
        _train(config, plan, store, log)
    if config.push_to_hub:
        _push(store, config.push_to_hub, log)
    log(f"next: vidray score --source VIDEOS --model {store.uri} --output SCORES")
    return _published_metrics(store)


def _train(config: TrainConfig, plan: TrainingPlan, store: Store, log: Callable[[str], None]) -> None:
    counts = {split: plan.manifest.count(split) for split in ("train", "val")}
    log(f"{counts['train']} videos to train on, {counts['val']} to validate with, {len(plan.manifest.labels)} classes")
    with Lease(store).held() as lease:
        if store.exists(VIDRAY_FILE):  # by the run that was waited for
            log(f"{store.uri} was finished meanwhile; nothing is trained")
            return
        _run_workers(config, plan, lease.guard(), log)


def _push(store: Store, repository: str, log: Callable[[str], None]) -> None:
    from vidray.training.publish import push_to_hub

    push_to_hub(store, repository)
    log(f"uploaded to {repository} on the Hugging Face Hub")


def _run_workers(config: TrainConfig, plan: TrainingPlan, guard: LeaseGuard, log: Callable[[str], None]) -> None:
    if _trains_in_this_process(config):
        from vidray.training.device import choose_device
        from vidray.training.loop.ranks import Ranks
        from vidray.training.worker import WorkerContext, run_worker

        ranks = Ranks(device=choose_device(config.device))
        run_worker(config, WorkerContext(ranks=ranks, log=log, check_lease=guard.check), plan=plan)
    else:
        from vidray.training.trainer import train_on_ray

        # Workers read the plan themselves, but for what it does not hold.
        listed = plan.manifest if holds_secrets(plan.manifest.table) else None
        train_on_ray(config, guard, listed=listed, log=log)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Ray's workers run in folders of their own."""

    def absolute(place: str) -> str:
        return place if "://" in place else os.path.abspath(place)

    return dataclasses.replace(
        config,
        source=tuple(absolute(place) for place in config.source),
        model=os.path.abspath(config.model) if os.path.isdir(config.model) else config.model,  # else a Hub id or a URI
        output=absolute(config.output),
        video_root=None if config.video_root is None else absolute(config.video_root),
    )


def _trains_in_this_process(config: TrainConfig) -> bool:
    """One worker and no cluster: a laptop."""
    return config.workers == 1 and named_cluster(config.ray_address) is None


def _published_metrics(store: Store) -> dict[str, Any]:
    return store.read_json(VIDRAY_FILE)["metrics"]


def evaluate(config: EvaluateConfig, *, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Evaluate a checkpoint; returns its figures, and writes them to ``config.output`` if there is one.

    Raises UsageError, RunError or TooManyFailuresError.
    """
    from vidray.checkpoints.checkpoint import read_checkpoint, require_labels
    from vidray.training.evaluate_job import evaluate_checkpoint

    checkpoint = read_checkpoint(config.model)
    require_labels(checkpoint)
    store = None if config.output is None else Store(config.output)
    if store is not None:
        store.probe()
        require_kind(store, "evaluation")
    return evaluate_checkpoint(config, checkpoint, labelled_rows(config, checkpoint.labels), store, log=log)


def labelled_rows(config: EvaluateConfig, labels: Sequence[str]) -> pa.Table:
    """The labelled videos to evaluate on: rows of ``vidray.sources.labels``, at least one.

    Raises UsageError for a label that the model does not have.
    """
    from vidray.sources.labels import LabelSource, load_for_evaluation

    source = LabelSource(
        source=config.source,
        video_root=config.video_root,
        list_labels=config.list_labels,
        label_key=config.label_key,
    )
    manifest = load_for_evaluation(source, labels)
    table = manifest.table if config.split == "all" else manifest.rows_of(config.split)
    if table.num_rows == 0:
        counts = {split: manifest.count(split) for split in ("train", "val", "test")}
        raise UsageError(f"--split {config.split}: the sources have no such videos, but {counts}")
    return table
