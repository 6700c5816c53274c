"""Tasks run until the last has ended, in bounded number where somebody waits for that."""

from __future__ import annotations

import threading

import pytest

from vidray.sources.task_pool import TaskPool


def test_tasks_that_tasks_spawn_are_waited_for() -> None:
    done = []

    def task(depth: int) -> None:
        done.append(depth)
        if depth < 3:
            tasks.spawn(task, depth + 1)
            tasks.spawn(task, depth + 1)

    with TaskPool(2) as tasks:
        tasks.spawn(task, 0)
        tasks.join()
    assert sorted(done) == [0, 1, 1, *[2] * 4, *[3] * 8]


def test_whoever_waits_for_fewer_tasks_goes_on_when_so_many_are_left() -> None:
    may_end, steps = threading.Event(), []
    with TaskPool(2, on_step=lambda: steps.append("step")) as tasks:
        tasks.spawn(may_end.wait)
        for _ in range(5):
            tasks.spawn(lambda: None)
        tasks.join(leaving=1)
        assert len(steps) == 5
        may_end.set()
        tasks.join()
    assert len(steps) == 6


def test_the_first_error_is_raised_to_whoever_waits() -> None:
    def fails() -> None:
        raise ValueError("no")

    with TaskPool(1) as tasks:
        tasks.spawn(fails)
        tasks.spawn(lambda: None)
        with pytest.raises(ValueError, match="no"):
            tasks.join()
