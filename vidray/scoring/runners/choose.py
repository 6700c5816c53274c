"""Which runner a command uses."""

from __future__ import annotations

from collections.abc import Callable

from vidray.cluster import is_cluster_named
from vidray.scoring.config import ScoreConfig
from vidray.scoring.runners.base import MakeStages, Runner
from vidray.types import ViewConfig


def make_runner(
    config: ScoreConfig, view: ViewConfig, make_stages: MakeStages, *, say: Callable[[str], None]
) -> Runner:
    """The runner that was asked for; ``auto``: Ray exactly where a cluster is named. Nothing is started yet.

    Args:
        say: shows a line that says what it waits for.
    """
    name = config.runner
    if name == "auto":
        name = "ray" if is_cluster_named(config.ray_address) else "local"
    if name == "ray":
        from vidray.scoring.runners.ray import RayRunner  # a second to import

        return RayRunner(config, view, make_stages, say=say)
    from vidray.scoring.runners.local import LocalRunner

    return LocalRunner(config, view, make_stages)
