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
from collections.abc import Iterator
from dataclasses import dataclass

from vidray.cpu_tuning import ENVIRONMENT
from vidray.errors import RunError, UsageError

_LOCAL_SETTINGS = {
    **ENVIRONMENT,
    # Ray's C++ core writes warnings of no use to a user across the live line.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""For what is started here, where the user has not set them otherwise."""

_KNOCK_SECONDS = 10.0


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

    if ray.is_initialized():
        yield
        return
    _connect(named_cluster(address) or "local", asked_for=address)
    try:
        yield
    finally:
        ray.shutdown()


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
    """Ray takes SIGTERM when it starts, and Ray Train SIGINT when it trains, and both keep them: after that they would
    not end a command as they should.
    """
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


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What there is to share: now, and when an autoscaler has brought all that it may. Equal on a fixed cluster."""

    num_cpus: float
    num_gpus: float
    max_cpus: float
    max_gpus: float


def read_cluster() -> Cluster:
    """The resources of the cluster that this process is connected to."""
    import ray

    now, most = ray.cluster_resources(), _autoscaler_maxima()
    cpus, gpus = now.get("CPU", 0.0), now.get("GPU", 0.0)
    max_cpus, max_gpus = max(cpus, most.get("CPU", 0.0)), max(gpus, most.get("GPU", 0.0))
    return Cluster(num_cpus=cpus, num_gpus=gpus, max_cpus=max_cpus, max_gpus=max_gpus)


def _autoscaler_maxima() -> dict[str, float]:
    """What an autoscaler may bring in all; {} if there is none, or this version of Ray does not tell.

    The one private part of Ray that is used: it has no public reader of the autoscaler's configuration.
    """
    try:
        from ray._private.state import state

        return dict(state.get_max_resources_from_cluster_config() or {})
    except (ImportError, AttributeError):
        return {}


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
