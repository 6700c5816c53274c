"""Where a run stands, and how its saved states spell that."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from vidray.training.data.bad_videos import BadVideo


@dataclass(kw_only=True, slots=True)
class TrainingPosition:
    """Where the run stands. Part of each state."""

    epoch: int = 0
    samples: int = 0
    """Samples of this epoch that are done, over all ranks."""
    step: int = 0
    """Optimizer steps done."""
    best_step: int | None = None
    best_key: list[float] | None = None
    """Larger is better: the chosen metric, then minus the NLL."""
    best_epoch: int | None = None
    num_without_gain: int = 0
    """Validations in a row that brought nothing better."""
    is_over: bool = False
    bad_videos: dict[int, BadVideo] = field(default_factory=dict)
    """By row of the training table."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``state.json``: copies, since a state is written while training goes on.

        Bad videos are stored as two maps by row, ``verdicts`` (the statuses) and ``messages``. Stored names stay as
        they are, since runs resume from states that earlier versions saved.
        """
        values = dataclasses.asdict(self)
        del values["bad_videos"]
        return values | {
            "verdicts": {str(row): bad.status for row, bad in self.bad_videos.items()},
            "messages": {str(row): bad.message for row, bad in self.bad_videos.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The position that `to_json` stored."""
        values = dict(values)
        statuses, messages = values.pop("verdicts", {}), values.pop("messages", {})
        bad_videos = {
            int(row): BadVideo(status=status, message=messages.get(row, "")) for row, status in statuses.items()
        }
        return cls(**values, bad_videos=bad_videos)
