"""The hostile child where nothing is taken from it."""

from __future__ import annotations

from tests.support.hostile import child, loosen


def main(**fds: int) -> None:
    loosen.forbid_all()
    child.main(**fds)
