"""How a child gives up what it does not need, and what of that the kernel enforces.

The filter of system calls (``seccomp``) closes files, network and processes; ``landlock`` closes most of it again.
Neither needs a privilege, so an ordinary user's decoder in a container is as closed as root's. Limits of memory and of
open files come on top, and a network namespace where there is the privilege for it.

What is needed has been imported by then: afterwards no file can be opened, Python's own modules among them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidray.sandbox import landlock, seccomp

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidray.types import Limits

_MAX_OPEN_FILES = 32
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNET = 0x40000000
_CAPABILITIES_VERSION = 0x20080522


@dataclass(frozen=True, kw_only=True, slots=True)
class Confinement:
    """What the kernel enforces on a child. ``str()`` of it is one line for people."""

    landlock_version: int
    """Version of Landlock in force; 0: none."""
    landlock_error: int = 0
    """Number of the error that kept Landlock from it; 0: none."""
    filter_error: int = 0
    """Number of the error that kept the filter of system calls from it; 0: it is in force."""
    has_network_namespace: bool = False
    """It has a network of its own, without devices."""
    has_fixed_limits: bool = True
    """It cannot raise its limit of memory."""

    def __post_init__(self) -> None:
        if (self.landlock_version > 0) == (self.landlock_error > 0):
            raise ValueError(f"Landlock has a version or an error: {self.landlock_version}, {self.landlock_error}")

    @property
    def is_full(self) -> bool:
        """True if files, network and processes are closed and memory is limited."""
        return not self.filter_error and self.has_fixed_limits

    @property
    def files(self) -> str:
        """How far files are closed."""
        if not self.filter_error:
            return "closed"
        return "cannot be opened, but looked at" if self.landlock_version else "open"

    @property
    def network(self) -> str:
        """How far the network is closed."""
        if not self.filter_error:
            return "closed"
        if self.has_network_namespace:
            return "closed but for sockets at a path"
        return "closed for TCP only" if self.landlock_version >= 4 else "open"

    @property
    def processes(self) -> str:
        """How far other processes are closed: to start them, to signal them, to read them."""
        if not self.filter_error:
            return "closed"
        if self.landlock_version >= 6:
            return "cannot be signalled or read, but started"
        return "cannot be read, but signalled and started" if self.landlock_version else "open"

    @property
    def memory(self) -> str:
        """Whether memory is limited."""
        return "limited" if self.has_fixed_limits else "not limited"

    def __str__(self) -> str:
        means = [f"Landlock {self.landlock_version}"] if self.landlock_version else []
        means += ["seccomp"] * (not self.filter_error) + ["network namespace"] * self.has_network_namespace
        by = f" ({', '.join(means)})" if means else ""
        if self.is_full:
            return f"files, network and processes closed by the kernel{by}"
        levels = {name: getattr(self, name) for name in ("files", "network", "processes", "memory")}
        return f"not all is closed by the kernel{by}: " + "; ".join(f"{name} {level}" for name, level in levels.items())

    def what_is_missing(self) -> str:
        """Why the level is not full, and what to do; empty if it is."""
        reasons = []
        if self.filter_error:
            reasons.append(f"seccomp is not in force: {_reason(self.filter_error, _FILTER_REASONS)}")
            if self.landlock_error:
                reasons.append(f"nor is Landlock: {_reason(self.landlock_error, _LANDLOCK_REASONS)}")
        if not self.has_fixed_limits:
            reasons.append("the memory limit can be raised: start the run without the capability CAP_SYS_RESOURCE")
        return "; ".join(reasons)


_LACKING = "this kernel was built without it; take one with CONFIG_SECCOMP_FILTER"
_FORBIDDEN = "a policy forbids it, such as a container's own; allow the calls seccomp and prctl there"
_FILTER_REASONS = {
    errno.ENOTSUP: f"it has no list of this machine's system calls, only those of {' and '.join(seccomp.MACHINES)}",
    errno.EPERM: _FORBIDDEN,
    errno.EACCES: _FORBIDDEN,
    errno.ENOSYS: _LACKING,
    errno.EINVAL: _LACKING,
}
_LANDLOCK_REASONS = {
    errno.ENOSYS: "this kernel is older than 5.13 or was built without it",
    errno.EOPNOTSUPP: "this kernel was started without it (lsm=landlock,…)",
    errno.EPERM: "a policy forbids it, such as a container's own",
}


def _reason(error: int, reasons: dict[int, str]) -> str:
    return f"{reasons.get(error, os.strerror(error))} ({errno.errorcode.get(error, error)})"


def confine(*, limits: Limits) -> tuple[Callable[[int], None], Confinement]:
    """Give up files, network, processes, memory and privileges, for good. Call it with one thread.

    What the kernel does not have or does not allow is left out, and said.

    Returns:
        What moves the memory limit by so many bytes, and what is in force.
    """
    with contextlib.suppress(OSError):  # if memory runs out on the machine, this process goes first, not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    set_memory_limit = _limit_resources(limits)
    libc = ctypes.CDLL(None, use_errno=True)
    # Core dumps go to a handler program whatever RLIMIT_CORE says where core_pattern is a pipe; not for these.
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # A set-uid program that it starts gives it nothing; also what Landlock and seccomp ask for.
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A network of its own, without devices. Needs root (and no user namespace is made to become it: that would open
    # more of the kernel to the decoder than it closes).
    has_network_namespace = libc.unshare(_CLONE_NEWNET) == 0
    under_landlock = landlock.restrict()
    _drop_capabilities(libc)
    has_fixed_limits = not _can_raise_limits()
    return set_memory_limit, Confinement(
        landlock_version=under_landlock.version,
        landlock_error=under_landlock.error,
        filter_error=seccomp.install(),
        has_network_namespace=has_network_namespace,
        has_fixed_limits=has_fixed_limits,
    )


def _limit_resources(limits: Limits) -> Callable[[int], None]:
    """Bound what can be bounded by number.

    Returns what moves the memory limit for so many bytes beyond: a video's own bytes do not count against it, neither
    mapped nor copied.
    """
    base_bytes = _address_space_bytes() + limits.decode_memory_bytes
    hard_bytes = base_bytes + 2 * limits.max_object_bytes + mmap.PAGESIZE

    def set_memory_limit(num_more_bytes: int) -> None:
        _set_limit(resource.RLIMIT_AS, base_bytes + num_more_bytes + mmap.PAGESIZE, hard_bytes)

    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # writes nothing; its memory is mapped
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),  # starts neither threads nor processes that could outlive it (root may)
    ):
        _set_limit(kind, value, value)
    set_memory_limit(0)
    return set_memory_limit


def _set_limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit, or the one that is there where that is lower: it cannot be raised."""
    there = resource.getrlimit(kind)[1]
    if there != resource.RLIM_INFINITY:
        soft, hard = min(soft, there), min(hard, there)
    resource.setrlimit(kind, (soft, hard))


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root's privileges end here: with them it could raise its own limits, among other things."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())


def _can_raise_limits() -> bool:
    """Tries, by a page."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard + mmap.PAGESIZE))
    except (ValueError, OSError):
        return False
    return True
