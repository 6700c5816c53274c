"""Stages that open no file and load no network: what is left of a score run is planning, moving rows and writing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidray.scoring.output import ROW
from vidray.scoring.runners.base import Stages, StageSpec
from vidray.scoring.stage_specs import MakeRunStages
from vidray.scoring.stages import DECODED_SCHEMA, PREDICTED_SCHEMA
from vidray.types import Status

VIEW_BYTES = 8 * 32 * 32 * 3
"""Of a video's views: one of 8 frames of 32 × 32."""


def stub_stages(peaks: Path) -> MakeRunStages:
    """In place of the default stages of a job.

    Args:
        peaks: a folder where each worker writes its peak memory, see ``peak_bytes``.
    """
    peaks.mkdir(exist_ok=True)

    def make(*_: object) -> Stages:
        kwargs = {"peaks": str(peaks)}
        return Stages(
            decode=StageSpec(cls=StubDecode, kwargs=kwargs), predict=StageSpec(cls=StubPredict, kwargs=kwargs)
        )

    return make


class StubDecode:
    """Views of zeros for every row."""

    def __init__(self, *, peaks: str) -> None:
        self._peak = _Peak(Path(peaks), "decode")

    def __call__(self, block: pa.Table) -> pa.Table:
        columns: dict[str, Any] = {name: block[name] for name in (ROW, "uri", "etag", "size_bytes", "attempts")}
        columns |= {
            "status": [Status.OK.value] * block.num_rows,
            "decoder": [f"pid {os.getpid()}"] * block.num_rows,
            "views": [bytes(VIEW_BYTES)] * block.num_rows,
        }
        table = _table(columns, block.num_rows, DECODED_SCHEMA)
        self._peak.note()
        return table


class StubPredict:
    """One label for every row."""

    def __init__(self, *, peaks: str) -> None:
        self._peak = _Peak(Path(peaks), "predict")

    def __call__(self, block: pa.Table) -> pa.Table:
        now = time.time()
        columns: dict[str, Any] = {name: block[name] for name in block.column_names if name != "views"}
        columns |= {
            "label": ["label"] * block.num_rows,
            "predictor": [f"pid {os.getpid()}"] * block.num_rows,
            "predict_started_at": [now] * block.num_rows,
            "predict_ended_at": [now] * block.num_rows,
        }
        table = _table(columns, block.num_rows, PREDICTED_SCHEMA)
        self._peak.note()
        return table


def _table(columns: dict[str, Any], num_rows: int, schema: pa.Schema) -> pa.Table:
    return pa.table({name: columns.get(name, [None] * num_rows) for name in schema.names}, schema=schema)


class _Peak:
    """The peak memory of this process in a file, as seen at the end of its blocks."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._path = folder / f"{kind}-{os.getpid()}"
        self._num_bytes = 0

    def note(self) -> None:
        """Call it while a block's memory is there."""
        num_bytes = private_bytes()
        if num_bytes > self._num_bytes:
            self._num_bytes = num_bytes
            self._path.write_text(str(num_bytes))


def private_bytes() -> int:
    """Memory of this process without what it shares with others, as the object store of Ray."""
    _, resident, shared = map(int, Path("/proc/self/statm").read_text().split()[:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(peaks: Path, kind: str) -> int:
    """Of the largest worker that ran stages of this kind, ``decode`` or ``predict``; 0 if there was none."""
    return max((int(path.read_text()) for path in peaks.glob(f"{kind}-*")), default=0)
