"""The poison child where seccomp(2) is forbidden: it can start processes, and look at what it has open."""

from __future__ import annotations

from tests.support import poison_child
from tests.support.hostile import loosen


def main(**fds: int) -> None:
    loosen.forbid_filter()
    poison_child.main(**fds)
