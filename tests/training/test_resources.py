"""The workers and their decoding fit into the cluster, or training does not start."""

from __future__ import annotations

import pytest

from tests.scoring.runners.test_ray_layout import empty, of
from vidray.errors import UsageError
from vidray.training.config import TrainConfig
from vidray.training.resources import DecodeCpus, plan_decoding, plan_resources


@pytest.mark.parametrize(
    ("num_cpus", "num_workers", "cpus_per_worker", "decoders", "expected"),
    [
        (2, 1, 1, None, DecodeCpus(num_parallel=1, cpus_per_task=1.0)),
        (2, 2, 0.5, None, DecodeCpus(num_parallel=1, cpus_per_task=0.5)),
        (16, 4, 1, None, DecodeCpus(num_parallel=3, cpus_per_task=1.0)),
        (68, 4, 1, None, DecodeCpus(num_parallel=16, cpus_per_task=1.0)),
        (8, 2, 1, 6, DecodeCpus(num_parallel=6, cpus_per_task=0.5)),
        (8, 2, 1, 2, DecodeCpus(num_parallel=2, cpus_per_task=1.0)),
    ],
)
def test_what_the_workers_leave_is_shared(
    num_cpus: float, num_workers: int, cpus_per_worker: float, decoders: int | None, expected: DecodeCpus
) -> None:
    got = plan_decoding(num_cpus=num_cpus, num_workers=num_workers, cpus_per_worker=cpus_per_worker, decoders=decoders)
    assert got == expected
    assert num_workers * (cpus_per_worker + got.num_parallel * got.cpus_per_task) <= num_cpus


@pytest.mark.parametrize(
    ("num_cpus", "num_workers", "cpus_per_worker", "expected"),
    [
        (2, 1, 1, DecodeCpus(num_parallel=2, cpus_per_task=0.5)),
        (2, 2, 0.5, DecodeCpus(num_parallel=1, cpus_per_task=0.5)),
        (16, 2, 4, DecodeCpus(num_parallel=8, cpus_per_task=0.5)),
    ],
)
def test_smaller_tasks_are_more_tasks(
    num_cpus: float, num_workers: int, cpus_per_worker: float, expected: DecodeCpus
) -> None:
    got = plan_decoding(num_cpus=num_cpus, num_workers=num_workers, cpus_per_worker=cpus_per_worker, cpus_per_task=0.5)
    assert got == expected
    assert num_workers * (cpus_per_worker + got.num_parallel * got.cpus_per_task) <= num_cpus


def test_no_cpu_left_is_refused_with_what_is_needed() -> None:
    with pytest.raises(UsageError) as caught:
        plan_decoding(num_cpus=2, num_workers=2, cpus_per_worker=1)
    message = str(caught.value)
    assert "the cluster has 2 CPUs, and 2 training workers take 1 of them each: 0 are left for decoding" in message
    assert "at least 1 are needed" in message
    assert "--workers 1 or fewer" in message


def test_one_worker_on_one_cpu_is_told_to_find_another() -> None:
    with pytest.raises(UsageError, match="Use nodes with more CPUs"):
        plan_decoding(num_cpus=1, num_workers=1, cpus_per_worker=1)


def make_config(**values: object) -> TrainConfig:
    chosen = {"workers": 3, "decoders": 1, "threads": 1} | values
    return TrainConfig(source=("x",), model="x", output="x", **chosen)  # type: ignore[arg-type]


def test_workers_that_leave_no_cpu_for_decoding_are_refused_with_what_to_do() -> None:
    """They would wait for ever, without a word."""
    with pytest.raises(UsageError, match=r"left for decoding.*wait for ever"):
        plan_resources(make_config(workers=7), of((1, 2, 0)))


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--workers 3: the cluster has 2 GPUs"):
        plan_resources(make_config(), of((2, 8, 1)))


def test_on_gpus_the_other_cpus_decode() -> None:
    resources = plan_resources(make_config(workers=2, decoders=None), of((1, 18, 2)))
    assert resources.on_gpu
    assert resources.num_cpus == 1.0
    assert resources.decoding == DecodeCpus(num_parallel=8, cpus_per_task=1.0)


@pytest.mark.parametrize(("num_cpus", "workers"), [(2, 1), (8, 2), (16, 1)])
def test_on_cpus_as_many_tasks_decode_as_there_are_cpus(num_cpus: float, workers: int) -> None:
    """As without Ray: one task on two CPUs left a quarter of them idle, and training at two thirds of its speed."""
    resources = plan_resources(make_config(workers=workers, decoders=None, device="cpu"), of((1, num_cpus, 0)))
    assert not resources.on_gpu
    assert resources.decoding == DecodeCpus(num_parallel=int(num_cpus) // workers, cpus_per_task=0.5)


@pytest.mark.parametrize(
    ("num_cpus", "num_workers", "num_training", "num_threads"), [(8, 1, 4.0, 8), (8, 3, 1.0, 2), (2, 2, 0.5, 1)]
)
def test_on_cpus_half_of_them_train(num_cpus: float, num_workers: int, num_training: float, num_threads: int) -> None:
    resources = plan_resources(make_config(workers=num_workers, threads=None), of((1, num_cpus, 0)))
    assert not resources.on_gpu
    assert (resources.num_cpus, resources.num_threads) == (num_training, num_threads)


@pytest.mark.parametrize(
    ("cluster", "num_workers", "num_cpus", "num_threads"),
    [
        (of((8, 4, 0)), 1, 4.0, 4),  # by the sum of all nodes it would ask for 16 CPUs, and hang
        (of((8, 4, 0)), 8, 2.0, 4),
        (empty((4, 8, 0)), 4, 4.0, 8),  # nothing is there yet, but an autoscaler may bring it
        (of((1, 0, 0), (2, 8, 0)), 2, 4.0, 8),
    ],
)
def test_a_worker_takes_no_more_than_a_node_has(cluster, num_workers, num_cpus, num_threads) -> None:
    resources = plan_resources(make_config(workers=num_workers, threads=None, decoders=None), cluster)
    assert (resources.num_cpus, resources.num_threads) == (num_cpus, num_threads)


def test_a_worker_on_a_gpu_has_the_threads_of_its_node_not_of_the_cluster() -> None:
    resources = plan_resources(make_config(workers=2, threads=None), of((8, 64, 0), (2, 8, 1)))
    assert (resources.on_gpu, resources.num_threads) == (True, 8)


def test_gpus_that_an_autoscaler_may_bring_are_waited_for_and_cpus_not_taken_instead() -> None:
    from vidray.cluster import Cluster

    grows = Cluster(nodes=of((2, 8, 0)).nodes, most=of((2, 8, 0), (4, 8, 1)).nodes)
    assert plan_resources(make_config(workers=4), grows).on_gpu


@pytest.mark.parametrize(("cluster", "flags"), [(of((4, 0.5, 0)), {"workers": 1}), (of(), {})])
def test_a_worker_that_fits_on_no_node_is_refused_with_what_to_do(cluster, flags) -> None:
    with pytest.raises(UsageError, match="--wait-for-nodes SECONDS"):
        plan_resources(make_config(**flags), cluster)
