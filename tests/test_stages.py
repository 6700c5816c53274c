"""The stages of a score run, without Ray. What they do with real videos is in test_job."""

from __future__ import annotations

import threading
import time

from vidray.scoring.stages import BusyClock


def test_calls_side_by_side_are_busy_once():
    clock, both_inside = BusyClock(), threading.Barrier(2)
    took: list[float] = []

    def call() -> None:
        with clock:
            both_inside.wait()
            time.sleep(0.2)  # what is measured
        took.append(clock.take())

    started = time.perf_counter()
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.2 <= sum(took) <= time.perf_counter() - started


def test_time_in_which_nobody_is_inside_is_not_busy():
    clock = BusyClock()
    with clock:
        pass
    clock.take()
    time.sleep(0.2)  # what is not to be counted
    with clock:
        pass
    assert clock.take() < 0.1
