"""Which stages a run is made of, and with what arguments. The workers make them: torch is not imported here."""

from __future__ import annotations

from collections.abc import Callable

from vidray.checkpoints.checkpoint import Checkpoint
from vidray.scoring.config import ScoreConfig
from vidray.scoring.runners.base import Stages, StageSpec
from vidray.types import ViewConfig

MakeRunStages = Callable[[ScoreConfig, Checkpoint, ViewConfig, int | None], Stages]
"""What ``default_stages`` is; a test may put another in its place."""


def default_stages(config: ScoreConfig, checkpoint: Checkpoint, view: ViewConfig, num_threads: int | None) -> Stages:
    """The decode and the predict stage of a run; of one that sees whole videos (``is_chunked``) one for both.

    Args:
        num_threads: CPU threads of one predictor; None: it runs on a GPU.
    """
    predict = {
        "checkpoint": checkpoint,
        "view": view,
        "device": config.device,
        "precision": config.precision,
        "num_threads": num_threads,
        "top_k": config.top_k,
        "embedding": config.embedding,
    }
    if view.is_chunked:
        from vidray.scoring.stream_stage import StreamStage

        stream = {"limits": config.limits, "num_videos": config.streams_per_worker(num_threads)}
        stream["fetch_memory_bytes"] = config.fetch_memory_bytes
        return Stages(decode=None, predict=StageSpec(cls=StreamStage, kwargs=predict | stream))
    from vidray.scoring.stages import DecodeStage, PredictStage

    decode = {"view": view, "limits": config.limits, "fetch_threads": config.fetch_threads}
    decode["fetch_memory_bytes"] = config.fetch_memory_bytes
    decode["range_reads_above_bytes"] = config.range_reads_above_bytes
    predict |= {"compile": config.compile, "batch_size": config.batch_size}
    return Stages(decode=StageSpec(cls=DecodeStage, kwargs=decode), predict=StageSpec(cls=PredictStage, kwargs=predict))
