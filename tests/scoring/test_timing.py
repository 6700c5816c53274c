"""What the driver sums up of the rows that come to it."""

from __future__ import annotations

import pyarrow as pa

from vidray.scoring.stages import PREDICTED_SCHEMA
from vidray.scoring.timing import StageTimes


def test_each_way_in_which_decoders_were_closed_is_kept_once():
    times = StageTimes()
    for texts in (["all", None, "all"], ["some", "all"], [None]):
        times.add(pa.Table.from_pylist([{"sandbox": text} for text in texts], PREDICTED_SCHEMA))
    assert times.sandboxes == {"all", "some"}
    assert times.num_rows == 6
