"""A lease on an output: one driver at a time plans and writes.

It needs nothing from the store but conditional creation. The lease is a chain of small objects with rising numbers,
``_lease/000000000042.json``: whoever creates the next number holds the lease, and renews it by creating the one after.
The number is the fencing token. Expiry is judged by the waiter's own clock (the newest number has not moved for
``TTL_SECONDS``), so clocks of different machines are never compared.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidray.errors import OutputInUseError, RunError
from vidray.storage.store import Store

TTL_SECONDS = 60.0
"""A lease that was not renewed for this long is free."""

_FOLDER = "_lease"


class LeaseLostError(RunError):
    """Another driver has taken the output; what this one writes from now on would not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    number: int
    holder: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who works on an output, as its lease tells."""

    host: str
    pid: int
    since: datetime.datetime | None
    """When it took the output, by its own clock; None: a version that did not record it."""
    renewed_at: datetime.datetime | None
    """Its last sign of life, by its own clock; None as above."""

    def silent_seconds(self, now: datetime.datetime) -> float | None:
        """Since its last sign of life, at least 0; None: not recorded. As exact as the two clocks are equal."""
        return None if self.renewed_at is None else max(0.0, (now - self.renewed_at).total_seconds())


def read_holder(store: Store) -> Holder | None:
    """Who holds an output; None if nobody does, or a process of this machine that is certainly dead.

    A process of another machine that died is found out by its silence: longer than ``TTL_SECONDS``.

    Raises:
        RunError: the lease is damaged, or the store failed.
    """
    newest = _newest(store)
    if newest is None or newest.holder.get("released"):
        return None
    try:
        if _is_free(newest):
            return None
        since, renewed_at = (_time(newest.holder.get(name)) for name in ("since", "time"))
        return Holder(host=newest.holder["host"], pid=newest.holder["pid"], since=since, renewed_at=renewed_at)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{store.uri_for(_path(newest.number))} cannot be read: it is no lease") from error


def _time(text: str | None) -> datetime.datetime | None:
    return None if text is None else datetime.datetime.fromisoformat(text)


class Lease:
    """Holds an output until it is released or its process dies."""

    def __init__(self, store: Store, *, ttl_seconds: float = TTL_SECONDS) -> None:
        self._store = store
        self._brief_store = store.with_deadline(ttl_seconds / 2)
        """For the background and for the end, where nothing is lost by giving up: ``check`` waits patiently."""
        self._ttl_seconds = ttl_seconds
        self._id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._number = 0
        self._since = ""
        self._waits_for: str | None = None
        self._renewed_at = 0.0
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> int:
        """The fencing token: rises with every renewal and every change of hands."""
        return self._number

    @contextlib.contextmanager
    def held(self, *, on_wait: Callable[[str], None] | None = None) -> Iterator[Lease]:
        """Acquire, renew in the background, release.

        Args:
            on_wait: gets a line if another run is at work, and its end is waited for; None: it is not.

        Raises:
            OutputInUseError: another run is at work.
        """
        while not self._acquire(on_wait):
            pass
        self._thread = threading.Thread(target=self._renew_until_stopped, name="vidray-lease", daemon=True)
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()
            self._release()

    def guard(self) -> LeaseGuard:
        """What another process checks before it writes on behalf of this one."""
        return LeaseGuard(uri=self._store.uri, holder_id=self._id)

    def check(self) -> None:
        """Raise LeaseLostError unless the lease is surely still ours. Call it before every write that counts."""
        if self._lost is None and _now() - self._renewed_at < self._ttl_seconds * 0.8:
            return
        if self._lost is None:  # we slept (a suspended machine, a stuck store): ask the store, do not guess
            self._renew(self._store)
        if self._lost is not None:
            raise LeaseLostError(f"the lease on {self._store.uri} was taken over: {self._lost}")

    def _acquire(self, on_wait: Callable[[str], None] | None) -> bool:
        """False: another one that waited was quicker."""
        newest, seen_at = _newest(self._store), _now()
        while newest is not None and not _is_free(newest):
            if _now() - seen_at > self._ttl_seconds:
                break
            self._stop.wait(min(1.0, self._ttl_seconds / 20))
            again = _newest(self._store)
            if again is not None and again.number != newest.number and not _is_free(again):
                told = f"another run is working on {self._store.uri}: {_describe(again)}"
                if on_wait is None:
                    raise OutputInUseError(f"{told}. Wait until it has ended, or stop it")
                if self._waits_for != again.holder.get("id"):
                    on_wait(f"{told}; waiting for its end")
                self._waits_for, seen_at = again.holder.get("id"), _now()
            newest = again
        if self._take((newest.number if newest else 0) + 1, self._store):
            return True
        if on_wait is None:
            raise OutputInUseError(f"another run took {self._store.uri} at the same moment")
        return False

    def _take(self, number: int, store: Store, **extra: Any) -> bool:
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._since = self._since or time
        holder = _this_process() | {"id": self._id, "since": self._since, "time": time}
        try:
            store.create(_path(number), json.dumps(holder | extra).encode())
        except FileExistsError:
            if _read(store, number).get("id") != self._id:  # else ours: the acknowledgement was lost
                return False
        # Numbers below the newest are deleted by their holder, so a free number may be an old one.
        newest = _newest(store)
        if newest is None or newest.number != number:
            store.delete(_path(number))
            return False
        self._number, self._renewed_at = number, _now()
        return True

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._ttl_seconds / 6):
            # A store that does not answer now may answer next time. check() decides when it is too late; it renews by
            # itself then, and raises what is hidden here.
            with contextlib.suppress(Exception):
                self._renew(self._brief_store)
            if self._lost is not None:
                return

    def _renew(self, store: Store) -> None:
        """Take the next number. After an outage longer than the lease it is still free unless somebody took over."""
        with self._lock:
            before = self._number
            if self._take(before + 1, store):
                store.delete(_path(before - 1))
            else:
                newest = _newest(store)
                self._lost = _describe(newest) if newest else "its objects were deleted"

    def _release(self) -> None:
        if self._lost is not None:
            return
        store = self._brief_store
        with contextlib.suppress(Exception):  # what is not released is free after ttl_seconds
            last = self._number
            if self._take(last + 1, store, released=True):
                for number in (last, last - 1):
                    store.delete(_path(number))


def _newest(store: Store) -> _Entry | None:
    numbers = [int(Path(path).stem) for path in store.list(_FOLDER) if Path(path).stem.isdigit()]
    for number in sorted(numbers, reverse=True):
        try:
            return _Entry(number=number, holder=_read(store, number))
        except FileNotFoundError:  # deleted by its holder between our listing and our reading
            continue
    return None


def _read(store: Store, number: int) -> dict[str, Any]:
    return store.read_json(_path(number))


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseGuard:
    """Tells any process whether an output is still in the hands of the lease that gave it. Pickles.

    A lease that was not renewed for too long is still its holder's as long as nobody else has taken it.
    """

    uri: str
    holder_id: str

    def check(self) -> None:
        """Raise LeaseLostError if another run has taken the output, or its own driver has ended. Asks the store."""
        newest = _newest(Store(self.uri))
        if newest is None:
            raise LeaseLostError(f"the lease on {self.uri} is gone: its objects were deleted")
        if newest.holder.get("id") != self.holder_id:
            raise LeaseLostError(f"the lease on {self.uri} was taken over: {_describe(newest)}")
        if newest.holder.get("released"):
            raise LeaseLostError(f"the lease on {self.uri} was released: the driver has ended")


def _path(number: int) -> str:
    return f"{_FOLDER}/{number:012d}.json"


def _now() -> float:
    # Unlike CLOCK_MONOTONIC it goes on while the machine is suspended, when others may take the lease.
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    boot, started = _process_identity(pid)
    return {"host": socket.gethostname(), "pid": pid, "boot": boot, "started": started}


def _process_identity(pid: int) -> tuple[str, str]:
    """Which boot and PID namespace we are in, and when the process started; empty where the system does not tell."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                return boot, fields[19]
        return boot, ""
    return "", ""


def _is_free(entry: _Entry) -> bool:
    """True if it was released, or held by a process of this machine that is certainly dead."""
    holder = entry.holder
    if holder.get("released"):
        return True
    boot, started = _process_identity(int(holder["pid"]))
    return bool(boot) and boot == holder["boot"] and started != holder["started"]


def _describe(entry: _Entry) -> str:
    return f"process {entry.holder['pid']} on {entry.holder['host']} (lease {entry.number})"
