"""What a runner is: the engine that takes plan rows through the stages of a run.

A runner need not be careful. It may lose rows, give them twice and change their order: the job keys what comes by plan
row, asks again for what is missing, and counts everything at the end. So another engine is another file here, and
cannot break a promise of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from vidray.types import Status


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A callable class, of which each worker makes an object of its own: one Arrow table in, one out, row for row."""

    cls: type
    kwargs: dict[str, Any]

    def make(self) -> Callable[[pa.Table], pa.Table]:
        """The stage. Slow: it starts processes or loads a network."""
        return self.cls(**self.kwargs)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What every row goes through."""

    decode: StageSpec | None
    """Plan rows to decoded rows; None where ``predict`` decodes too, as in a streaming run."""
    predict: StageSpec
    """Decoded rows (or plan rows) to predicted rows."""


MakeStages = Callable[[int | None], Stages]
"""The stages for a predictor on so many CPU threads; None: on a GPU."""


class Loss(NamedTuple):
    """Why a row did not come back."""

    status: Status
    message: str


UNKNOWN_LOSS = Loss(Status.MODEL_ERROR, "it did not come back from the workers, which gave no reason")


class Runner(Protocol):
    """An engine, for all that one command has to score."""

    rows_at_once: int
    """How many rows it should be asked for: each call begins and ends with some idle workers, and holds its rows."""

    def device(self) -> Literal["cpu", "cuda"]:
        """Where the network will run, now that ``--device auto`` must be decided."""

    def run(self, rows: pa.Table, *, alone: bool = False) -> Generator[pa.Table, None, None]:
        """Predicted rows of these plan rows, as they become ready. Close it if you stop early.

        Args:
            alone: have each row in a worker by itself, so that it takes no other row down with it.

        Raises:
            UsageError: the stages cannot be made as asked.
            RunError: the engine cannot go on.
        """

    def why_lost(self, row: int) -> Loss:
        """Why this plan row did not come back when it was last asked for."""

    def close(self) -> None:
        """End all workers."""
