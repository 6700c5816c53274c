"""Processes that a Ray which was started for one command, on this machine and without a dashboard, does without.

Ray's own: an autoscaler, a monitor that sends the output of workers to a driver, and what is left of the dashboard.
Each is a Python process that imports Ray while everything else starts, and then wakes for nothing.

Ray Data's, beside every execution: an actor for the figures of the dashboard, one for where actors are, and one for
what an autoscaler should bring. They become objects of the driver. As a process each of them imports Ray Data, stays
with 200 MB, and wakes a hundred times a second.

The functions that are replaced are private to Ray, so this happens only in versions with which it was tried; with
others Ray has its processes as ever.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

TRIED_WITH = "2.60."
"""The versions of Ray in which this is done."""


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """Within, ``ray.init`` starts the control service of a Ray, and a raylet with its agents, but nothing else."""
    from ray._private.node import Node

    with contextlib.ExitStack() as undo:
        if ray.__version__.startswith(TRIED_WITH):
            for start in ("start_monitor", "start_log_monitor", "start_api_server"):
                _replace(undo, Node, start, _nothing)
        yield


@contextlib.contextmanager
def helpers_here() -> Iterator[None]:
    """Within, Ray Data starts no helper actors. Only for a Ray of one node that stays as it is, and of this driver."""
    with contextlib.ExitStack() as undo:
        if ray.__version__.startswith(TRIED_WITH):
            _replace_all(undo)
        yield


def _replace_all(undo: contextlib.ExitStack) -> None:
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
    from ray.data._internal.execution.operators import actor_pool_map_operator
    from ray.data._internal.utils import cached_ray_internals

    figures = _Handle(gen_dataset_id=_random_id)
    places = _Handle(get_actor_locations=_all_on_this_node)
    nodes = ray.put({node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]})
    resources = _Handle(get_reserved_resources=lambda _: nodes)
    for module, function, handle in (
        (stats, "get_or_create_stats_actor", figures),
        (actor_pool_map_operator, "get_or_create_actor_location_tracker", places),
        (cached_ray_internals, "get_or_create_actor_location_tracker", places),
        (default_autoscaling_coordinator, "get_or_create_autoscaling_coordinator", resources),
    ):
        _replace(undo, module, function, lambda handle=handle: handle)


def _replace(undo: contextlib.ExitStack, where: Any, name: str, function: Callable[..., Any]) -> None:
    undo.callback(setattr, where, name, getattr(where, name))
    setattr(where, name, function)


class _Handle:
    """As an actor's handle: ``handle.method.remote(…)`` gives what was said for that method, and else does nothing.
    May be sent to other processes.
    """

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):  # of Python's, such as those that pickle asks for
            raise AttributeError(name)
        return _Method(self._methods.get(name, _nothing))


class _Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _random_id() -> ray.ObjectRef:
    return ray.put(uuid.uuid4().hex)


def _all_on_this_node(actor_ids: Iterable[str]) -> ray.ObjectRef:
    return ray.put(dict.fromkeys(actor_ids, ray.get_runtime_context().get_node_id()))
