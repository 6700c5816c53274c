"""The default stages, which leave a note of the node that they worked on; the GPU is a fake, so predict on the CPU."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import ray

from vidray.scoring.job import MakeStages, default_stages
from vidray.scoring.runners.ray import Stage
from vidray.scoring.stages import DecodeStage, PredictStage


def node_stages(report: str) -> MakeStages:
    def make(*args):
        decode, predict = default_stages(*args)
        decode = Stage(cls=NotedDecode, kwargs={**decode.kwargs, "report": report})
        predict = Stage(cls=NotedPredict, kwargs={**predict.kwargs, "report": report, "device": "cpu"})
        return decode, predict

    return make


def note(report: str, stage: str) -> None:
    Path(f"{report}.{stage}-{ray.get_runtime_context().get_node_id()}").touch()


class NotedDecode(DecodeStage):
    def __init__(self, *, report: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self._report = report

    def __call__(self, block: pa.Table) -> pa.Table:
        note(self._report, "decode")
        return super().__call__(block)


class NotedPredict(PredictStage):
    def __init__(self, *, report: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self._report = report

    def __call__(self, block: pa.Table) -> pa.Table:
        note(self._report, "predict")
        return super().__call__(block)
