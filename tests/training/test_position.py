"""Where a run stands survives being stored, under the names that states have had from the start."""

from __future__ import annotations

import json

from vidray.training.data.bad_videos import BadVideo
from vidray.training.loop.position import TrainingPosition

STORED = {
    **{"epoch": 1, "samples": 8, "step": 4, "best_step": 3, "best_key": [0.5, -2.0], "best_epoch": 0},
    **{"num_without_gain": 1, "is_over": False},
    **{"verdicts": {"5": "corrupt", "7": "not_found"}, "messages": {"5": "no header", "7": ""}},
}
POSITION = TrainingPosition(
    epoch=1,
    samples=8,
    step=4,
    best_step=3,
    best_key=[0.5, -2.0],
    best_epoch=0,
    num_without_gain=1,
    bad_videos={5: BadVideo(status="corrupt", message="no header"), 7: BadVideo(status="not_found", message="")},
)


def test_the_stored_names_stay_as_they_are() -> None:
    assert json.loads(json.dumps(POSITION.to_json())) == STORED
    assert TrainingPosition.from_json(STORED) == POSITION


def test_a_bad_video_may_be_stored_without_a_message() -> None:
    position = TrainingPosition.from_json(STORED | {"messages": {}})
    assert position.bad_videos[5] == BadVideo(status="corrupt", message="")


def test_what_is_stored_does_not_change_with_the_position() -> None:
    """It is written while training goes on."""
    position = TrainingPosition.from_json(STORED)
    values = position.to_json()
    position.bad_videos[9] = BadVideo(status="corrupt", message="")
    position.best_key = [1.0]
    assert values == STORED
