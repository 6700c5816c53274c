"""The poison child where there is no Landlock."""

from __future__ import annotations

from tests.support import poison_child
from tests.support.hostile import loosen


def main(**fds: int) -> None:
    loosen.forbid_landlock()
    poison_child.main(**fds)
