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
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vidray import monitoring
from vidray.cluster import RayMetrics, connected, explain, wait_for_nodes
from vidray.errors import RunError, TooManyFailuresError, UsageError
from vidray.sources.labels import LabelledManifest
from vidray.storage import redaction, retry
from vidray.storage.lease import LeaseGuard
from vidray.training.config import TrainConfig
from vidray.training.data.ray_pool import RayClipPool
from vidray.training.device import choose_device
from vidray.training.loop.ranks import Ranks
from vidray.training.plan import read_plan
from vidray.training.resources import WorkerResources, plan_resources
from vidray.training.worker import WorkerContext, run_worker

_LOG_POLL_SECONDS = 0.5


def train_on_ray(
    config: TrainConfig,
    guard: LeaseGuard,
    *,
    listed: LabelledManifest | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train on ``config.workers`` Ray workers until the output is finished.

    Args:
        guard: of the driver's lease on the output.
        listed: the videos with the signed URLs that open them, which are in no file.

    Raises:
        UsageError: the cluster cannot hold the workers and their decoding.
        RunError, TooManyFailuresError: training failed for good.
    """
    with connected(config.ray_address):
        resources = wait_for_nodes(lambda cluster: plan_resources(config, cluster), seconds=config.wait_for_nodes)
        mailbox = open_mailbox()
        with forward_logs(mailbox, log):
            handle = None if listed is None else ray.put(listed)
            _fit(_Job(config=config, resources=resources, guard=guard, mailbox=mailbox, listed=handle))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What the driver hands to its workers."""

    config: TrainConfig
    resources: WorkerResources
    guard: LeaseGuard
    mailbox: Any
    listed: ray.ObjectRef | None


class DriverMailbox:
    """An actor where workers leave lines that the driver logs, and an error that makes further attempts pointless.

    Training goes on without it: what is lost with it are lines, and that an attempt is not worth making.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._error: Exception | None = None

    def put_line(self, line: str) -> None:
        """Leave a line to log."""
        self._lines.append(line)

    def take_lines(self) -> list[str]:
        """The lines since the last time."""
        lines, self._lines = self._lines, []
        return lines

    def put_error(self, error: Exception) -> None:
        """Leave an error that another attempt would meet again. The first one counts."""
        self._error = self._error or error

    def error(self) -> Exception | None:
        """The error that was left."""
        return self._error


def open_mailbox() -> Any:
    """A mailbox on the driver's own node: an actor without CPUs could land on any, and end with that."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(DriverMailbox).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def ask(answer: ray.ObjectRef, default: Any) -> Any:
    """What a mailbox answered; ``default`` if it is gone."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayActorError:
        return default


@contextlib.contextmanager
def forward_logs(mailbox: Any, log: Callable[[str], None]) -> Iterator[None]:
    """Log the workers' lines while they train. Ray's own way to show prints doubles and decorates them."""
    is_over = threading.Event()

    def forward() -> None:
        for line in ask(mailbox.take_lines.remote(), ()):
            log(line)

    def forward_until_over() -> None:
        while not is_over.wait(_LOG_POLL_SECONDS):
            forward()

    thread = threading.Thread(target=forward_until_over, name="vidray-forward-logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        forward()


def _fit(job: _Job) -> None:
    on_gpu = job.resources.on_gpu
    with tempfile.TemporaryDirectory(prefix="vidray-ray-train-") as storage:
        trainer = TorchTrainer(
            functools.partial(_train_loop, job=job),
            train_loop_config={},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=job.config.workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": job.resources.num_cpus, **({"GPU": 1} if on_gpu else {})},
            ),
            run_config=RunConfig(
                name=f"vidray-train-{uuid.uuid4().hex[:12]}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=job.config.max_restarts),
            ),
        )
        failure: Exception | None = None
        try:
            _apart(trainer.fit)
        except TrainingFailedError as error:
            failure = error
    if failure is not None and (known := ask(job.mailbox.error.remote(), None)) is not None:
        raise known
    if failure is not None:
        raise explain(failure, what="the workers failed too often, at last with: ") from failure


def _apart(call: Callable[[], Any]) -> None:
    """Make the call in a thread of its own, and wait for its end, or for a signal that ends this command.

    In the main thread Ray Train would take SIGINT for itself, and its wait would end for no other signal. The thread
    ends when Ray is shut down.
    """
    errors: list[BaseException] = []
    is_over = threading.Event()

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)
        finally:
            is_over.set()

    threading.Thread(target=run, name="vidray-ray-train", daemon=True).start()
    is_over.wait()
    if errors:
        raise errors[0]


def _train_loop(_: dict[str, Any], *, job: _Job) -> None:
    """One worker, on its machine.

    An error that another attempt would meet again is left in the mailbox and raised, so that Ray ends the other
    workers, who may wait for this one. The next attempt finds it there and fails at once.
    """
    if (known := ask(job.mailbox.error.remote(), None)) is not None:
        raise known
    try:
        _run_worker(job)
    except (UsageError, TooManyFailuresError, RunError) as error:
        ask(job.mailbox.put_error.remote(error), None)
        raise


def _run_worker(job: _Job) -> None:
    config, resources, mailbox = job.config, job.resources, job.mailbox
    torch.set_num_threads(resources.num_threads)
    monitoring.configure(RayMetrics())
    redaction.configure(config.secret_parameters)
    retry.configure(deadline_seconds=config.store_deadline_seconds, on_wait=lambda line: mailbox.put_line.remote(line))
    ray_context, decoding = ray.train.get_context(), resources.decoding
    on_gpu = ray.train.torch.get_device().type == "cuda"
    context = WorkerContext(
        ranks=Ranks(
            rank=ray_context.get_world_rank(),
            world_size=ray_context.get_world_size(),
            device=choose_device("cuda" if on_gpu else "cpu"),
        ),
        make_pool=functools.partial(
            RayClipPool, num_parallel=decoding.num_parallel, cpus_per_task=decoding.cpus_per_task
        ),
        is_preempted=lambda: ray.train.get_preemption_info() is not None,
        after_epoch=lambda figures: ray.train.report(figures),
        check_lease=job.guard.check,
        log=lambda line: mailbox.put_line.remote(line),
    )
    if context.ranks.is_first and ray.available_resources().get("CPU", 0.0) < decoding.cpus_per_task:
        context.log("no CPU of the cluster is free for decoding, perhaps since a node was lost; waiting for one")
    listed = None if job.listed is None else ray.get(job.listed)
    run_worker(config, context, plan=read_plan(config, listed=listed))
