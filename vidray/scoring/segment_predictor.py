"""Segments: windows of many videos in, the logits of each out. For every family; each window is a clip by itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vidray.errors import VideoError
from vidray.models.predict import embed, forward_views
from vidray.scoring.batching import NO_FRAME, BatchingPredictor, Request, VideoScores
from vidray.scoring.predictor import default_batch_size
from vidray.scoring.stages import score_columns
from vidray.types import Status
from vidray.video.sampling import Chunk

import torch  # isort: skip  # after the predictor, which tells its threads how to wait

_WINDOWS_AHEAD = 4
"""Of one video, that wait for the network. More would fill its batches when few videos are left, and memory always."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What the network says of a window."""

    logits: torch.Tensor
    """(num_labels,) float32 on the CPU; of a checkpoint without labels its features."""
    features: torch.Tensor | None
    """(features,) float32 on the CPU, if embeddings are asked for."""
    seconds: float
    """The window's share of the time on the device."""


class SegmentScores(VideoScores):
    """The windows of a video. Their logits are kept, since the row's own label is of all of them."""

    def __init__(self, predictor: SegmentPredictor) -> None:
        self._predictor, self._view = predictor, predictor.view
        self._asked: deque[Future[Window]] = deque()
        self._logits: list[torch.Tensor] = []
        self._features: list[torch.Tensor] = []
        self._seconds = 0.0

    def add(self, chunk: Chunk, frames_THWC: np.ndarray) -> None:
        self._asked.append(self._predictor.ask(frames_THWC))
        if len(self._asked) > _WINDOWS_AHEAD:
            self._take()

    def _take(self) -> None:
        window = self._asked.popleft().result()
        self._logits.append(window.logits)
        if window.features is not None:
            self._features.append(window.features)
        self._seconds += window.seconds

    def columns(self) -> dict[str, Any]:
        while self._asked:
            self._take()
        if not self._logits:
            raise VideoError(Status.DECODER_CRASHED, NO_FRAME)
        segments = [
            {"start_seconds": start, "end_seconds": end, **self._found(slice(index, index + 1))}
            for index, (start, end) in enumerate(self._times())
        ]
        num_views = {"num_views": len(segments), "predict_seconds": self._seconds}
        return {**self._found(slice(None)), "segments": segments, **num_views}

    def _found(self, windows: slice) -> dict[str, Any]:
        """The columns that say what the network found in some of the windows."""
        best, kind = self._predictor.best(torch.stack(self._logits[windows])), self._predictor.embedding
        embedding = embed(torch.stack(self._features[windows]), kind=kind) if kind else None
        return {**score_columns(best), "embedding": embedding}

    def _times(self) -> Iterator[tuple[float, float]]:
        """Start and end of each window, in seconds of the file: the last one ends with the video."""
        for index in range(len(self._logits) - 1):
            start = Fraction(self.start_seconds) + index * self._view.segment_step
            yield float(start), float(start + self._view.segment_length)
        yield max(self.start_seconds, self.end_seconds - float(self._view.segment_length)), self.end_seconds


class SegmentPredictor(BatchingPredictor):
    """Scores windows with a checkpoint; ``view`` has ``span="segments"``."""

    @property
    def has_lanes(self) -> bool:
        return self.checkpoint.family.batches_side_by_side

    def batch_limits(self, max_videos: int) -> tuple[int, int]:
        max_windows = min(max_videos, default_batch_size(self.view, self.device))
        return max_windows, max_windows * self.view.num_frames

    def begin(self) -> SegmentScores:
        return SegmentScores(self)

    @torch.inference_mode()
    def _forward(self, batch: list[Request]) -> list[Window]:
        started = time.perf_counter()
        frames_NTHWC = torch.from_numpy(np.stack([request.frames for request in batch])).to(self.device)
        family = self.checkpoint.family
        logits_NC = forward_views(self._model, frames_NTHWC, family=family, view=self.view, dtype=self._dtype).cpu()
        beside_NF = self._tap.take().cpu() if self._tap else [None] * len(batch)
        features_NF = beside_NF if self.checkpoint.labels else logits_NC
        seconds = (time.perf_counter() - started) / len(batch)
        return [
            Window(logits=logits, features=features, seconds=seconds)
            for logits, features in zip(logits_NC, features_NF, strict=True)
        ]
