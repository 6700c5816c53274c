"""The hostile child where there is no Landlock."""

from __future__ import annotations

from tests.support.hostile import child, loosen


def main(**fds: int) -> None:
    loosen.forbid_landlock()
    child.main(**fds)
