"""The hostile child where seccomp(2) is forbidden."""

from __future__ import annotations

from tests.support.hostile import child, loosen


def main(**fds: int) -> None:
    loosen.forbid_filter()
    child.main(**fds)
