"""The commands of training: decides where to train, and refuses early what cannot work."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

from vidray.checkpoints.checkpoint import VIDRAY_FILE
from vidray.cluster import named_cluster
from vidray.cpu_tuning import ENVIRONMENT
from vidray.errors import UsageError
from vidray.storage.lease import Lease
from vidray.storage.store import Store
from vidray.training.config import EvaluateConfig, TrainConfig
from vidray.training.plan import Plan, prepare


def train(config: TrainConfig, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train until the output is finished, or find it so. Returns the published figures.

    Raises UsageError, RunError or TooManyFailuresError.
    """
    from vidray.training.trackers import check_trackers

    os.environ.setdefault("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"])  # before torch is loaded
    check_trackers(config)
    config = _placed(config)
    plan = prepare(config, say=say)
    store = Store(config.output)
    if plan.is_finished:
        say(f"{store.uri} is finished already, with accuracy {_published(store)['accuracy']:.4f}; nothing is trained")
    else:
        _train(config, plan, store, say)
    if config.push_to_hub:
        _push(store, config.push_to_hub, say)
    return _published(store)


def _train(config: TrainConfig, plan: Plan, store: Store, say: Callable[[str], None]) -> None:
    counts = {split: plan.manifest.count(split) for split in ("train", "val")}
    say(f"{counts['train']} videos to train on, {counts['val']} to validate with, {len(plan.manifest.labels)} classes")
    with Lease(store).held():
        _work(config, plan, say)


def _push(store: Store, repository: str, say: Callable[[str], None]) -> None:
    from vidray.training.publish import push_to_hub

    push_to_hub(store, repository)
    say(f"uploaded to {repository} on the Hugging Face Hub")


def _work(config: TrainConfig, plan: Plan, say: Callable[[str], None]) -> None:
    if _in_process(config):
        from vidray.training.loop.ranks import Ranks
        from vidray.training.worker import Surroundings, choose_device, work

        work(config, Surroundings(ranks=Ranks(device=choose_device(config)), say=say), plan=plan)
    else:
        from vidray.training.trainer import train_on_ray

        train_on_ray(config, say=say)


def _placed(config: TrainConfig) -> TrainConfig:
    """With local places as absolute paths: Ray's workers run in folders of their own."""

    def absolute(place: str) -> str:
        return place if "://" in place else os.path.abspath(place)

    return dataclasses.replace(
        config,
        source=tuple(absolute(place) for place in config.source),
        model=os.path.abspath(config.model) if os.path.isdir(config.model) else config.model,  # else a Hub id or a URI
        output=absolute(config.output),
        video_root=None if config.video_root is None else absolute(config.video_root),
    )


def _in_process(config: TrainConfig) -> bool:
    """One worker and no cluster: a laptop."""
    return config.workers == 1 and named_cluster(config.ray_address) is None


def _published(store: Store) -> dict[str, Any]:
    return json.loads(store.read(VIDRAY_FILE))["metrics"]


def evaluate(config: EvaluateConfig, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Evaluate a checkpoint; returns its figures, and writes them to ``config.output`` if there is one.

    Raises UsageError, RunError or TooManyFailuresError.
    """
    from vidray.checkpoints.checkpoint import read_checkpoint
    from vidray.sources.labels import LabelSource, load_for_evaluation
    from vidray.training.evaluate_job import evaluate_checkpoint

    checkpoint = read_checkpoint(config.model)
    store = None if config.output is None else Store(config.output)
    if store is not None:
        store.probe()
    source = LabelSource(source=config.source, video_root=config.video_root)
    manifest = load_for_evaluation(source, checkpoint.labels)
    table = manifest.table if config.split == "all" else manifest.rows_of(config.split)
    if table.num_rows == 0:
        counts = {split: manifest.count(split) for split in ("train", "val", "test")}
        raise UsageError(f"--split {config.split}: the sources have no such videos, but {counts}")
    return evaluate_checkpoint(config, checkpoint, table, store, say=say)
