"""Landlock: the kernel lets this process open no file, reach no TCP port and signal nobody.

A second line behind the filter of system calls, and the only one where that is not allowed. What Landlock cannot close:
looking at paths (stat), changing modes and owners, UDP and multipath TCP, sockets that lie at a path.

https://docs.kernel.org/userspace-api/landlock.html; the numbers of the calls are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_ASK_VERSION = 1
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many kinds of access to files each version knows; 16 from version 5 on."""
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class Landlock(NamedTuple):
    """What came of it."""

    version: int
    """The version that is in force; 0: none."""
    error: int
    """0, or the number of the error that kept it from it: ENOSYS where the kernel is older than 5.13 or was built
    without, EOPNOTSUPP where it was not turned on at boot, EPERM where a policy forbids it."""


def restrict() -> Landlock:
    """Deny this thread, for good, all that the kernel's Landlock can; it must have given up gaining privileges."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return Landlock(version=0, error=ctypes.get_errno())
    # Each kind of access that is named here and has no exception, as none has, is denied.
    file_rights = (1 << _NUM_FILE_RIGHTS.get(version, 16)) - 1
    tcp_rights = _BIND_AND_CONNECT_TCP if version >= 4 else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    denied = struct.pack("=QQQ", file_rights, tcp_rights, scopes)
    ruleset_fd = libc.syscall(_CREATE_RULESET, denied, ctypes.c_size_t(len(denied)), 0)
    if ruleset_fd < 0:
        return Landlock(version=0, error=ctypes.get_errno())
    result = libc.syscall(_RESTRICT_SELF, ruleset_fd, 0)
    error = ctypes.get_errno() if result < 0 else 0
    os.close(ruleset_fd)
    return Landlock(version=0 if error else version, error=error)
