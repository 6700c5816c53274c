"""Training does not start where decoding could never run."""

from __future__ import annotations

import pytest

from vidray.errors import UsageError
from vidray.training.data.pools import DecodeCpus, check_decode_cpus


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
    got = check_decode_cpus(
        num_cpus=num_cpus, num_workers=num_workers, cpus_per_worker=cpus_per_worker, decoders=decoders
    )
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
    got = check_decode_cpus(
        num_cpus=num_cpus, num_workers=num_workers, cpus_per_worker=cpus_per_worker, cpus_per_task=0.5
    )
    assert got == expected
    assert num_workers * (cpus_per_worker + got.num_parallel * got.cpus_per_task) <= num_cpus


def test_no_cpu_left_is_refused_with_what_is_needed() -> None:
    with pytest.raises(UsageError) as caught:
        check_decode_cpus(num_cpus=2, num_workers=2, cpus_per_worker=1)
    message = str(caught.value)
    assert "the cluster has 2 CPUs, and 2 training workers take 1 of them each: 0 are left for decoding" in message
    assert "at least 1 are needed" in message
    assert "--workers 1 or fewer" in message


def test_one_worker_on_one_cpu_is_told_to_find_another() -> None:
    with pytest.raises(UsageError, match="Use nodes with more CPUs"):
        check_decode_cpus(num_cpus=1, num_workers=1, cpus_per_worker=1)
