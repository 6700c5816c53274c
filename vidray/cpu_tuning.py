"""What a process may use of its machine, and what one that computes on CPUs sets for itself."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

ENVIRONMENT = {
    # Threads that spin while they wait take the cores from the decoders: scoring on CPUs is 1.7 times as fast without.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Of glibc's arenas only the first can hold more than 64 MiB: threads that share it can keep large activations.
    "MALLOC_ARENA_MAX": "1",
}
"""Read when a process starts, or loads a library, so set by who starts it, unless a user has set it otherwise."""

_QUOTA_FILE, _MEMORY_FILE = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/memory.max")
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def num_cpus() -> int:
    """CPUs that this process may use: those it may run on, or fewer where its container has a quota (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA_FILE.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where its container has a limit (cgroup v2)."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(_MEMORY_FILE.read_text()))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return total


def use_one_arena() -> None:
    """Have threads that are still to come share one arena of glibc's: dozens of threads that allocate now and then keep
    what they freed in as many places, and the process grows. Source: mallopt(3).
    """
    _mallopt((_M_ARENA_MAX, 1))


def keep_freed_memory() -> None:
    """Have glibc keep up to 2 GiB of freed memory for what comes next, in one heap, instead of unmapping it.

    The same activations come and go all the time. Mapped anew, and zeroed by the kernel, they cost an eighth of the CPU
    time of a small VideoMAE and more than half of R(2+1)D's.

    Call it early: threads that have used another arena before stay with that. Source: mallopt(3).
    """
    _mallopt((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))


def _mallopt(*settings: tuple[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        for parameter, value in settings:
            libc.mallopt(parameter, value)
