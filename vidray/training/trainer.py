"""Ray Train around the training loop: places the workers, and starts them anew when one dies.

Ray keeps nothing of a run. The loop resumes from its own state in the output, each attempt has a Ray run name of its
own (Ray takes a known name for a finished run and trains nothing), and metrics are reported once per validation, since
every report makes all workers wait for the controller's next look, two seconds by default.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from vidray.errors import RunError, TooManyFailuresError, UsageError
from vidray.training.config import TrainConfig
from vidray.training.pools import DecodeCpus, check_decode_cpus
from vidray.training.ranks import Ranks
from vidray.training.ray_pool import RayPool
from vidray.training.worker import Surroundings, choose_device, work

_CPUS_PER_WORKER_ON_GPU = 1.0
_KNOWN = {kind.__name__: kind for kind in (UsageError, TooManyFailuresError, RunError)}


def train_on_ray(config: TrainConfig) -> None:
    """Train on ``config.workers`` Ray workers until the output is finished.

    Raises:
        UsageError: the cluster cannot hold the workers and their decoding.
        RunError, TooManyFailuresError: training failed for good.
    """
    with _connected(config.ray_address):
        on_gpu, layout = plan_layout(config, ray.cluster_resources())
        _fit(config, on_gpu=on_gpu, layout=layout)


def plan_layout(config: TrainConfig, resources: dict[str, float]) -> tuple[bool, DecodeCpus]:
    """(whether on GPUs, CPUs for decoding). Raises UsageError for what would wait for ever."""
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    on_gpu = config.device == "cuda" or (config.device == "auto" and num_gpus >= 1)
    if on_gpu and num_gpus < config.workers:
        raise UsageError(
            f"--workers {config.workers}: the cluster has {num_gpus:g} GPUs, and every worker needs one; "
            "take fewer workers, or --device cpu"
        )
    cpus = cpus_per_worker(config, num_cpus, on_gpu=on_gpu)
    layout = check_decode_cpus(
        num_cpus=num_cpus, num_workers=config.workers, cpus_per_worker=cpus, decoders=config.decoders
    )
    return on_gpu, layout


def cpus_per_worker(config: TrainConfig, num_cpus: float, *, on_gpu: bool) -> float:
    """What one worker takes of the cluster's CPUs. On CPUs half of them train, and small machines are shared in
    fractions: the model and the decoders take turns there."""
    if on_gpu:
        return _CPUS_PER_WORKER_ON_GPU
    share = num_cpus / config.workers / 2
    return float(int(share)) if share >= 1 else round(share, 3)


def _fit(config: TrainConfig, *, on_gpu: bool, layout: DecodeCpus) -> None:
    num_cpus = ray.cluster_resources().get("CPU", 0.0)
    cpus = cpus_per_worker(config, num_cpus, on_gpu=on_gpu)
    threads = config.threads or max(1, int(num_cpus // config.workers))
    with tempfile.TemporaryDirectory(prefix="vidray-ray-train-") as storage:
        trainer = TorchTrainer(
            functools.partial(_train_loop, config=config, layout=layout, threads=threads),
            train_loop_config={},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": cpus, **({"GPU": 1} if on_gpu else {})},
            ),
            run_config=RunConfig(
                name=f"vidray-train-{uuid.uuid4().hex[:12]}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=config.max_restarts),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _explain(error) from error


def _train_loop(_: dict[str, Any], *, config: TrainConfig, layout: DecodeCpus, threads: int) -> None:
    """One worker, on its machine. An error that a retry cannot mend is passed on as data, not raised."""
    torch.set_num_threads(threads)
    context = ray.train.get_context()
    device = choose_device(config) if ray.train.torch.get_device().type == "cuda" else torch.device("cpu")
    around = Surroundings(
        ranks=Ranks(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device),
        make_pool=functools.partial(RayPool, num_parallel=layout.num_parallel, cpus_per_task=layout.cpus_per_task),
        notice=lambda: ray.train.get_preemption_info() is not None,
        after_epoch=lambda figures: ray.train.report(figures),
        say=functools.partial(print, flush=True),
    )
    work(config, around)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within a cluster: the one at ``address`` or in ``$RAY_ADDRESS``, else one on this machine, ended afterwards."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    more: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=True, **more)
    except ConnectionError as error:
        raise UsageError(f"--ray-address {address}: no Ray cluster answers there ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _explain(error: BaseException) -> Exception:
    """What a failure inside Ray means for the user: our own error if it was one, else the last line."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        name, _, message = line.rpartition("vidray.errors.")[2].partition(": ")
        if name in _KNOWN:
            return _KNOWN[name](message)
    last = lines[-1] if lines else type(error).__name__
    return RunError(f"{last} (the workers failed too often; Ray's logs in /tmp/ray tell more)")
