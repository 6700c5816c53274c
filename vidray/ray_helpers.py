"""Processes that a Ray which was started for one command, on this machine and without a dashboard, does without.

Ray's own: an autoscaler, a monitor that sends the output of workers to a driver, what is left of the dashboard, and two
agents of the raylet: one for the figures of a dashboard, one that makes runtime environments. Each is a Python process
that imports Ray while everything else starts, the two before ``ray.init`` returns, and then wakes for nothing.

Ray Data's, beside every execution: an actor for the figures of the dashboard, one for where actors are, and one for
what an autoscaler should bring. They become objects of the driver. As a process each of them imports Ray Data, stays
with 200 MB, and wakes a hundred times a second.

The functions that are replaced are private to Ray, so this happens only in versions with which it was tried; with
others Ray has its processes as ever.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

TRIED_WITH = "2.60."
"""The versions of Ray in which this is done."""

_RUNTIME_ENV_VARIABLES = {"RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR"}
"""With these Ray gives everything a runtime environment by itself."""


@contextlib.contextmanager
def few_processes(*, runtime_envs: bool) -> Iterator[None]:
    """Within, ``ray.init`` starts the control service of a Ray and a raylet, but nothing else.

    Args:
        runtime_envs: whether any task or actor will ask for a runtime environment; if so, with the agent that makes
            them. Ray Train's workers do.
    """
    with contextlib.ExitStack() as undo:
        if ray.__version__.startswith(TRIED_WITH):
            _start_less(undo, runtime_envs=runtime_envs or not _RUNTIME_ENV_VARIABLES.isdisjoint(os.environ))
        yield


def _start_less(undo: contextlib.ExitStack, *, runtime_envs: bool) -> None:
    from ray._private import ray_constants, services, worker
    from ray._private.node import Node

    for start in ("start_monitor", "start_log_monitor", "start_api_server"):
        _replace(undo, Node, start, _nothing)
    agents = ["dashboard"]
    if not runtime_envs:
        agents.append("runtime_env")
        # Under `uv run` Ray asks for an environment by itself. Here the workers have the driver's Python anyway.
        _replace(undo, worker, "_maybe_modify_runtime_env", lambda runtime_env, _: runtime_env)
    start_process = services.start_ray_process

    def start_without_agents(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_RAYLET:
            command = _without_agents(command, agents)
        return start_process(command, process_type, *args, **kwargs)

    _replace(undo, services, "start_ray_process", start_without_agents)


def _without_agents(command: list[str], agents: list[str]) -> list[str]:
    """The command of a raylet, which insists on having agents and on their ports, with stand-ins for some."""
    raylet: Any = ray._raylet  # compiled, and its types say only a part
    stand_in = shutil.which("cat")  # reads the pipe that tells an agent of its raylet's end, and ends with it
    if stand_in is None:
        return command
    ports = {
        "dashboard": (
            raylet.METRICS_AGENT_PORT_NAME,
            raylet.METRICS_EXPORT_PORT_NAME,
            raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
        ),
        "runtime_env": (raylet.RUNTIME_ENV_AGENT_PORT_NAME,),
    }
    options = dict(word.partition("=")[::2] for word in command)
    for agent in agents:
        for port in ports[agent]:  # -1 is Ray's own "there is none"
            raylet.persist_port(options["--session_dir"], options["--node_id"], port, -1)
        option = f"--{agent}_agent_command="
        command = [option + stand_in if word.startswith(option) else word for word in command]
    return command


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
