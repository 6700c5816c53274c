"""What a run of scoring tells a monitoring system about rows that came."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from vidray import monitoring
from vidray.scoring.timing import STAGES, StageTimes


def record_rows(rows: pa.Table, times: StageTimes, *, num_left: int, fetch_threads: int) -> None:
    """``rows``: predicted ones that are counted in ``times`` already."""
    for entry in pc.value_counts(rows["status"]).to_pylist():
        monitoring.record(monitoring.VIDEOS, entry["counts"], status=entry["values"])
    for stage in STAGES:
        monitoring.record(monitoring.STAGE_SECONDS, pc.sum(rows[f"{stage}_seconds"]).as_py() or 0.0, stage=stage)
    for stage, share in times.busy(fetch_threads=fetch_threads).items():
        monitoring.record(monitoring.BUSY_SHARE, share, stage=stage)
    monitoring.record(monitoring.BYTES, pc.sum(rows["size_bytes"]).as_py() or 0)
    monitoring.record(monitoring.VIDEOS_LEFT, num_left)
