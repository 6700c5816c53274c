"""Processes that train together over gloo, without Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch.distributed as dist

from tests.support.faulty_server import free_port


def start(num_ranks: int, work: Callable[..., object], *arguments: Any, preload: Sequence[str] = ()) -> list[Any]:
    """Start ``work(rank, *arguments)`` in a process for each rank, within a process group.

    ``work`` is a function of a module. ``preload`` names modules that all processes share.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    port = free_port()
    processes = [
        context.Process(target=_join, args=(rank, num_ranks, port, work, arguments)) for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: Sequence[BaseProcess], *, seconds: float) -> None:
    """Wait until all have ended well."""
    for process in processes:
        process.join(seconds)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def _join(rank: int, num_ranks: int, port: int, work: Callable[..., object], arguments: Sequence[Any]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks)
    work(rank, *arguments)
    dist.destroy_process_group()
