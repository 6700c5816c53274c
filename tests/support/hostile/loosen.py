"""Takes a line of defence away from a child, as an older kernel or a container's policy would."""

from __future__ import annotations

import errno

from vidray.sandbox import child, landlock, seccomp
from vidray.sandbox.confinement import Confinement
from vidray.sandbox.landlock import Landlock


def forbid_filter() -> None:
    """As in a container whose policy forbids seccomp(2)."""
    seccomp.install = lambda: errno.EPERM


def forbid_landlock() -> None:
    """As on a kernel that is older than Landlock."""
    landlock.restrict = lambda: Landlock(version=0, error=errno.ENOSYS)


def forbid_all() -> None:
    """Not even limits: the control, which shows what the tries can do."""
    nothing = Confinement(
        landlock_version=0, landlock_error=errno.ENOSYS, filter_error=errno.EPERM, has_fixed_limits=False
    )
    child.confine = lambda *, limits: (lambda num_bytes: None, nothing)
