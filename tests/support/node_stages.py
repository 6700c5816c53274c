"""The default stages, which leave a note of the node that they worked on; the GPU is a fake, so predict on the CPU."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import ray

from tests.support.faulty_stages import changed
from vidray.scoring.runners.base import Stages
from vidray.scoring.stage_specs import MakeRunStages, default_stages
from vidray.scoring.stages import DecodeStage, PredictStage


def node_stages(report: str) -> MakeRunStages:
    def make(*args):
        stages = default_stages(*args)
        assert stages.decode is not None
        return Stages(
            decode=changed(stages.decode, NotedDecode, report=report),
            predict=changed(stages.predict, NotedPredict, report=report, device="cpu"),
        )

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
