"""One driver at a time works on an output, also when drivers die, sleep, or come together."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from vidray.errors import OutputInUseError
from vidray.storage.lease import Lease, LeaseLostError
from vidray.storage.store import Store

HOLD = """
import sys
from vidray.storage.lease import Lease
from vidray.storage.store import Store
with Lease(Store(sys.argv[1])).held() as lease:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def other_machine(store: Store, number: int = 1) -> None:
    """A lease of a process that this machine can know nothing about."""
    import json

    holder = {"host": "elsewhere", "pid": 1, "boot": "another boot", "started": "1", "id": "x"}
    store.create(f"_lease/{number:012d}.json", json.dumps(holder).encode())


def test_a_released_lease_is_free_at_once(store):
    for _ in range(3):
        with Lease(store, ttl_seconds=60).held():
            pass


def test_a_lease_that_is_renewed_is_refused_to_others(store):
    with (
        Lease(store, ttl_seconds=1.2).held(),
        pytest.raises(OutputInUseError, match="another run is working"),
        Lease(store, ttl_seconds=1.2).held(),
    ):
        pytest.fail("two hold the lease")


def test_whoever_waits_gets_the_output_when_its_holder_ends_and_is_told_once_whom_it_waits_for(store):
    told: list[str] = []
    holders: list[str] = []
    first = Lease(store, ttl_seconds=1.2)

    def wait() -> None:
        with Lease(store, ttl_seconds=1.2).held(on_wait=told.append):
            holders.append("second")

    with first.held():
        thread = threading.Thread(target=wait)
        thread.start()
        renewed, deadline = first.token + 12, time.monotonic() + 30
        while first.token < renewed and time.monotonic() < deadline:
            time.sleep(0.05)
        holders.append("first")
    thread.join(timeout=30)
    assert holders == ["first", "second"]
    (line,) = told
    assert f"process {os.getpid()}" in line


def test_a_killed_driver_of_this_machine_does_not_make_the_next_wait(store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"held\n"
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    started = time.monotonic()
    with Lease(store, ttl_seconds=600).held():
        assert time.monotonic() - started < 10


def test_a_dead_driver_of_another_machine_is_waited_for_and_then_replaced(store):
    other_machine(store)
    started = time.monotonic()
    with Lease(store, ttl_seconds=1.0).held() as lease:
        assert time.monotonic() - started >= 1.0
        assert lease.token > 1


def test_a_driver_that_slept_through_its_lease_may_not_write(store):
    with Lease(store, ttl_seconds=3600).held() as sleeper:
        sleeper.check()
        for number in range(sleeper.token + 1, sleeper.token + 3):
            other_machine(store, number)
        sleeper._renewed_at -= 3600
        with pytest.raises(LeaseLostError, match="elsewhere"):
            sleeper.check()


def test_a_driver_that_slept_but_was_not_replaced_goes_on(store):
    with Lease(store, ttl_seconds=3600).held() as sleeper:
        sleeper._renewed_at -= 3600
        sleeper.check()


def test_of_many_that_come_together_one_holds_the_lease(store):
    holders: list[int] = []
    most: list[int] = []
    refused: list[str] = []
    ready = threading.Barrier(6)

    def come() -> None:
        ready.wait()
        try:
            with Lease(store, ttl_seconds=2.0).held():
                holders.append(1)
                most.append(len(holders))
                time.sleep(0.3)
                holders.pop()
        except OutputInUseError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 6


def test_the_chain_of_lease_objects_stays_short(store):
    with Lease(store, ttl_seconds=0.6).held() as lease:
        first = lease.token
        deadline = time.monotonic() + 20
        while lease.token < first + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lease.token >= first + 5
        assert len(store.list("_lease")) <= 3
    assert len(store.list("_lease")) == 1


def test_a_guard_lets_its_own_run_write_also_after_a_long_pause_that_nobody_used(store):
    lease = Lease(store, ttl_seconds=0.1)
    lease._acquire(None)  # and never renewed
    guard = pickle.loads(pickle.dumps(lease.guard()))
    time.sleep(0.3)  # past its expiry
    guard.check()


def test_a_guard_refuses_what_is_written_after_the_lease_was_taken_or_its_driver_ended(store):
    with Lease(store, ttl_seconds=60).held() as lease:
        guard = lease.guard()
        guard.check()
    with pytest.raises(LeaseLostError, match="the driver has ended"):
        guard.check()
    with (
        Lease(store, ttl_seconds=60).held(),
        pytest.raises(LeaseLostError, match=f"taken over: process {os.getpid()}"),
    ):
        guard.check()
