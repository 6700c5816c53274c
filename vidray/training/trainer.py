"""Ray Train around the training loop: places the workers, and starts them anew when one dies.

Ray keeps nothing of a run. The loop resumes from its own state in the output, each attempt has a Ray run name of its
own (Ray takes a known name for a finished run and trains nothing), and metrics are reported once per validation, since
every report makes all workers wait for the controller's next look, two seconds by default.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from vidray.cluster import connected, explain, signals_kept
from vidray.errors import RunError, TooManyFailuresError, UsageError
from vidray.training.config import TrainConfig
from vidray.training.data.pools import MIN_TASK_CPUS, DecodeCpus, check_decode_cpus
from vidray.training.data.ray_pool import RayPool
from vidray.training.loop.ranks import Ranks
from vidray.training.worker import Surroundings, choose_device, work

_CPUS_PER_WORKER_ON_GPU = 1.0
_TELL_SECONDS = 0.5


def train_on_ray(config: TrainConfig, *, say: Callable[[str], None] = print) -> None:
    """Train on ``config.workers`` Ray workers until the output is finished.

    Raises:
        UsageError: the cluster cannot hold the workers and their decoding.
        RunError, TooManyFailuresError: training failed for good.
    """
    with connected(config.ray_address):
        on_gpu, layout = plan_layout(config, ray.cluster_resources())
        desk = ray.remote(Desk).options(num_cpus=0).remote()
        with _told(desk, say):
            _fit(config, on_gpu=on_gpu, layout=layout, desk=desk)


class Desk:
    """An actor where workers leave what the driver should say, and why all further attempts are in vain."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._error: Exception | None = None

    def put(self, text: str) -> None:
        """Leave a line."""
        self._texts.append(text)

    def take(self) -> list[str]:
        """The lines since the last time."""
        texts, self._texts = self._texts, []
        return texts

    def give_up(self, error: Exception) -> None:
        """Leave an error that another attempt would meet again. The first one counts."""
        self._error = self._error or error

    def error(self) -> Exception | None:
        """The error that was left."""
        return self._error


@contextlib.contextmanager
def _told(desk: Any, say: Callable[[str], None]) -> Iterator[None]:
    """Pass the workers' lines on while they train. Ray's own way to show prints doubles and decorates them."""
    over = threading.Event()

    def pass_on() -> None:
        while not over.wait(_TELL_SECONDS):
            for text in ray.get(desk.take.remote()):
                say(text)

    thread = threading.Thread(target=pass_on, name="vidray-tell", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for text in ray.get(desk.take.remote()):
            say(text)


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
        num_cpus=num_cpus,
        num_workers=config.workers,
        cpus_per_worker=cpus,
        decoders=config.decoders,
        # A network on CPUs leaves its half idle while it waits for data: small shares let decoders use those CPUs too.
        cpus_per_task=1.0 if on_gpu else MIN_TASK_CPUS,
    )
    return on_gpu, layout


def cpus_per_worker(config: TrainConfig, num_cpus: float, *, on_gpu: bool) -> float:
    """What one worker takes of the cluster's CPUs. On CPUs half of them train, and small machines are shared in
    fractions: the model and the decoders take turns there."""
    if on_gpu:
        return _CPUS_PER_WORKER_ON_GPU
    share = num_cpus / config.workers / 2
    return float(int(share)) if share >= 1 else round(share, 3)


def _fit(config: TrainConfig, *, on_gpu: bool, layout: DecodeCpus, desk: Any) -> None:
    num_cpus = ray.cluster_resources().get("CPU", 0.0)
    cpus = cpus_per_worker(config, num_cpus, on_gpu=on_gpu)
    threads = config.threads or max(1, int(num_cpus // config.workers))
    with tempfile.TemporaryDirectory(prefix="vidray-ray-train-") as storage:
        trainer = TorchTrainer(
            functools.partial(_train_loop, config=config, layout=layout, threads=threads, desk=desk),
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
        failure: Exception | None = None
        try:
            with signals_kept():
                trainer.fit()
        except TrainingFailedError as error:
            failure = error
    if (known := ray.get(desk.error.remote())) is not None:
        raise known
    if failure is not None:
        raise explain(failure, what="the workers failed too often, at last with: ") from failure


def _train_loop(_: dict[str, Any], *, config: TrainConfig, layout: DecodeCpus, threads: int, desk: Any) -> None:
    """One worker, on its machine.

    An error that another attempt would meet again is left at the desk and raised, so that Ray ends the other workers,
    who may wait for this one; the next attempt finds it there and does nothing.
    """
    if ray.get(desk.error.remote()) is not None:
        return
    try:
        _train(config, layout, threads, desk)
    except (UsageError, TooManyFailuresError, RunError) as error:
        ray.get(desk.give_up.remote(error))
        raise


def _train(config: TrainConfig, layout: DecodeCpus, threads: int, desk: Any) -> None:
    torch.set_num_threads(threads)
    context = ray.train.get_context()
    device = choose_device(config) if ray.train.torch.get_device().type == "cuda" else torch.device("cpu")
    around = Surroundings(
        ranks=Ranks(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device),
        make_pool=functools.partial(RayPool, num_parallel=layout.num_parallel, cpus_per_task=layout.cpus_per_task),
        notice=lambda: ray.train.get_preemption_info() is not None,
        after_epoch=lambda figures: ray.train.report(figures),
        say=lambda text: desk.put.remote(text),
    )
    if around.ranks.is_first and ray.available_resources().get("CPU", 0.0) < layout.cpus_per_task:
        around.say("no CPU of the cluster is free for decoding, perhaps since a node was lost; waiting for one")
    work(config, around)
