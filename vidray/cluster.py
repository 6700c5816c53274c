"""Joining a Ray cluster or starting Ray on this machine, what a cluster has, and what Ray's errors mean for a user.

Ray is imported only by the functions that need it: whether a cluster was named is asked by commands that use none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vidray import monitoring
from vidray.cpu_tuning import ENVIRONMENT
from vidray.errors import RunError, UsageError

_LOCAL_SETTINGS = {
    **ENVIRONMENT,
    # Until what Ray started here ends when its head has died; else a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    # Ray's C++ core writes warnings of no use to a user across the live line.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""For what is started here, where the user has not set them otherwise."""

_KNOCK_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_ROOM_SECONDS = 5.0
_RAY_LOST = signal.SIGUSR1
"""Sent to this process by itself, since an exception of a thread reaches no other."""
_RAY_DIED = "the Ray that was started here has died; the same command goes on from what is written"
_GRACE_SECONDS = 12.0
"""How long the end of this process may take after that."""
_UNLIMITED_NODES = 1000
"""What counts for a kind of node that an autoscaler may bring without limit."""

RAY_VERSIONS = ((2, 59), (2, 60))
"""The oldest and the newest Ray that the tests were run with; pyproject.toml has the same range. Older ones lack
`max_concurrent_calls_per_actor` (2.58) and `get_preemption_info` (2.57); what a newer one changes is not known."""

T = TypeVar("T")


def check_ray_version(version: str) -> None:
    """Raises UsageError unless a version of Ray is in RAY_VERSIONS."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    oldest, newest = (".".join(map(str, bound)) for bound in RAY_VERSIONS)
    if not RAY_VERSIONS[0] <= numbers <= RAY_VERSIONS[1]:
        after = f"{RAY_VERSIONS[1][0]}.{RAY_VERSIONS[1][1] + 1}"
        raise UsageError(
            f"Ray {version} is installed; vidray works with {oldest} to {newest}: "
            f"pip install 'ray[data,train]>={oldest},<{after}'"
        )


def named_cluster(asked: str | None) -> str | None:
    """The Ray cluster to use: what was asked for, else ``$RAY_ADDRESS``. None: none is running."""
    return asked or os.environ.get("RAY_ADDRESS") or None


def is_cluster_named(asked: str | None) -> bool:
    """True if a cluster was named, by a flag or ``$RAY_ADDRESS``, or this process is connected to one already."""
    ray = sys.modules.get("ray")
    return named_cluster(asked) is not None or (ray is not None and ray.is_initialized())


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within a Ray cluster: the one at ``address`` or in ``$RAY_ADDRESS``, else one on this machine, ended afterwards.

    Does nothing if this process is connected already. Raises UsageError if no cluster answers.
    """
    import ray

    check_ray_version(ray.__version__)
    if ray.is_initialized():
        with _metrics_through_ray():
            yield
        return
    where = named_cluster(address) or "local"
    _connect(where, asked_for=address)
    processes = None
    try:
        with _watched_ray() if where == "local" else contextlib.nullcontext() as processes, _metrics_through_ray():
            yield
    finally:
        if processes is None or not processes.is_lost:  # else it would wait for it
            ray.shutdown()


class RayMetrics:
    """Hands the values of `vidray.monitoring` to Ray, in a process that is connected to it."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        def make(cls: type, kind: str) -> dict[str, Any]:
            wanted = [series for series in monitoring.SERIES if series.kind == kind]
            return {series.name: cls(series.name, series.text, series.tags) for series in wanted}

        self._counters, self._gauges = make(Counter, "counter"), make(Gauge, "gauge")

    def __call__(self, series: monitoring.Series, value: float, tags: dict[str, str]) -> None:
        if series.kind == "gauge":
            self._gauges[series.name].set(value, tags)
        elif value > 0:  # Ray refuses to add nothing
            self._counters[series.name].inc(value, tags)


@contextlib.contextmanager
def _metrics_through_ray() -> Iterator[None]:
    monitoring.configure(RayMetrics())
    try:
        yield
    finally:
        monitoring.configure(None)


class _RayProcesses:
    """Watches the head (GCS) and the raylet of a Ray that was started here: should one die, Ray itself would wait for
    it for a minute and then end this process without a word. (A cluster may start its own anew.)
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.is_lost = False
        self._addresses = addresses
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vidray-watch-ray", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            try:
                for address in self._addresses:
                    _knock(address)
            except ConnectionError:
                self._tell()
                return

    def _tell(self) -> None:
        self.is_lost = True
        signal.raise_signal(_RAY_LOST)
        if not self._is_over.wait(_GRACE_SECONDS):  # Ray waits inside a call that no signal ends
            print(f"vidray: {_RAY_DIED}", file=sys.stderr, flush=True)
            os._exit(1)


def _raise_ray_lost(*_: object) -> None:
    raise RunError(_RAY_DIED)


@contextlib.contextmanager
def _watched_ray() -> Iterator[_RayProcesses | None]:
    """Within it RunError is raised in the main thread when one of them dies."""
    import ray

    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    before = signal.signal(_RAY_LOST, _raise_ray_lost)
    raylets = [f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in ray.nodes()]
    processes = _RayProcesses([ray.get_runtime_context().gcs_address, *raylets])
    processes.start()
    try:
        yield processes
    finally:
        processes.close()
        signal.signal(_RAY_LOST, before)


def _connect(address: str, *, asked_for: str | None) -> None:
    import ray

    for name, value in _LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    dashboard = False if address == "local" else None
    try:
        _knock(address)
        with _stderr_closed(), signals_kept():
            ray.init(address, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
    except OSError as error:
        name = f"--ray-address {asked_for}" if asked_for else f"RAY_ADDRESS={address}"
        raise UsageError(f"{name}: no Ray cluster answers there ({error})") from error


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at ``host:port``: Ray itself would try for ten minutes, in silence."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM when it starts, and keeps it: after that it would not end a command as it should."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Ray's core says on stderr that its log level was set. What goes wrong is raised, so nothing else is lost."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nothing, contextlib.ExitStack() as undo:
        kept = os.dup(2)
        undo.callback(os.close, kept)
        undo.callback(os.dup2, kept, 2)
        os.dup2(nothing.fileno(), 2)
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One machine of a cluster."""

    num_cpus: float
    num_gpus: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What there is to share. An actor lives on one node, so sums alone say little."""

    nodes: tuple[Node, ...]
    """Those that are there now."""
    most: tuple[Node, ...]
    """Those that there are when an autoscaler has brought all that it may. Equal to ``nodes`` on a fixed cluster."""

    @property
    def max_cpus(self) -> float:
        return sum(node.num_cpus for node in self.most)

    @property
    def max_gpus(self) -> float:
        return sum(node.num_gpus for node in self.most)

    def fits(self, demands: Iterable[tuple[float, float]]) -> bool:
        """True if actors of these (CPUs, GPUs) find room, the first node with room taking each."""
        rooms = sorted(([node.num_cpus, node.num_gpus] for node in self.most), key=lambda room: (room[1], room[0]))
        for cpus, gpus in demands:
            for room in rooms:
                if room[0] >= cpus - 1e-9 and room[1] >= gpus - 1e-9:
                    room[0] -= cpus
                    room[1] -= gpus
                    break
            else:
                return False
        return True


def read_cluster() -> Cluster:
    """The nodes of the cluster that this process is connected to."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [Node(num_cpus=have.get("CPU", 0.0), num_gpus=have.get("GPU", 0.0)) for have in alive]
    # Of each shape as many as there are, or as the autoscaler may bring.
    most = Counter(nodes) | _autoscaler_nodes()
    return Cluster(nodes=tuple(nodes), most=tuple(most.elements()))


def _autoscaler_nodes() -> Counter[Node]:
    """How many nodes of each shape an autoscaler may have; none if there is none, or this version of Ray does not tell.

    The one private part of Ray that is used: it has no public reader of the autoscaler's configuration.
    """
    try:
        from ray._private.state import state

        groups = getattr(state.get_cluster_config(), "node_group_configs", ())
        return Counter(
            {
                Node(num_cpus=float(group.resources["CPU"]), num_gpus=float(group.resources["GPU"])): (
                    group.max_count if group.max_count >= 0 else _UNLIMITED_NODES
                )
                for group in groups
            }
        )
    except (ImportError, AttributeError):
        return Counter()


def wait_for_nodes(decide: Callable[[Cluster], T], *, seconds: float) -> T:
    """What ``decide`` makes of the cluster, asked again for so long while it raises UsageError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return decide(read_cluster())
        except UsageError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_SECONDS)


def tell_lack_of_room(*, num_cpus: float, num_gpus: float, say: Callable[[str], None]) -> None:
    """Say so if less than this is free on the cluster that this process is connected to: Ray waits in silence.

    Looks for a few seconds, in which what ran before may end.
    """
    import ray

    needed = {"CPU": num_cpus, "GPU": num_gpus}
    deadline = time.monotonic() + _ROOM_SECONDS
    while True:
        free, there = ray.available_resources(), ray.cluster_resources()
        lacking = [name for name, number in needed.items() if free.get(name, 0.0) < number - 1e-6]
        if not lacking:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_SECONDS / 4)
    told = ", and ".join(
        f"{free.get(name, 0):.3g} of {there.get(name, 0):g} {name}s are free where {needed[name]:.3g} are needed"
        for name in lacking
    )
    say(f"waiting for room on the Ray cluster: {told}")


_CAUSE = re.compile(r"^(?!ray\.)([\w.]+(?:Error|Exception|Exit|Interrupt)): (.+)$", re.MULTILINE)


def explain(error: BaseException, *, what: str = "") -> UsageError | RunError:
    """What a failure inside Ray means for a user. Ray hands on the text of the cause alone, among tracebacks and hints.

    Args:
        what: comes before a cause that is not an error of ours.
    """
    text = str(error)
    causes = _CAUSE.findall(text)
    for ours in (UsageError, RunError):
        for name, message in causes:
            if name == f"{ours.__module__}.{ours.__name__}":
                return ours(message)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = ": ".join(causes[-1]) if causes else lines[-1] if lines else type(error).__name__
    return RunError(f"{what}{cause} (Ray's logs in /tmp/ray tell more)")
