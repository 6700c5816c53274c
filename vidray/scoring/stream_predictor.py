"""Streams: chunks of many videos in, the scores so far out.

Every video has a state of its own, so videos of any length and at any frame can share a batch, and one that ends or
fails takes nothing with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidray.checkpoints.checkpoint import Checkpoint
from vidray.errors import VideoError
from vidray.models.families import require_stream
from vidray.models.predict import normalise
from vidray.scoring.batching import NO_FRAME, BatchingPredictor, Request, VideoScores
from vidray.scoring.stages import score_columns
from vidray.types import Status
from vidray.video.sampling import Chunk

import torch  # isort: skip  # after the predictor, which tells its threads how to wait

_CPU_FRAMES = 8
"""Frames in one forward on a CPU, at most, from several videos where their chunks are short. Larger batches leave its
caches: MoViNet-A0 did 91 frames/s with one video's 8 frames, and 71 with 8 of each of four videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A video after a chunk."""

    state: Any
    """What the network remembers of it; pass it in with the next chunk."""
    logits: torch.Tensor
    """(num_labels,) float32 on the CPU, of all frames so far."""
    seconds: float
    """The video's share of the time on the device."""


class StreamScores(VideoScores):
    """A stream: the same few things after an hour as after a second, but for the timeline."""

    def __init__(self, predictor: StreamPredictor) -> None:
        self._predictor, self._view = predictor, predictor.view
        self._last: Step | None = None
        self._num_frames, self._seconds = 0, 0.0
        self._timeline: list[dict[str, Any]] = []

    def add(self, chunk: Chunk, frames_THWC: np.ndarray) -> None:
        self._last = self._predictor.step(frames_THWC, self._last and self._last.state)
        self._seconds += self._last.seconds
        self._num_frames += len(frames_THWC)
        # What ends with the video, or is cut off by its end, is noted when the video has ended.
        if chunk.end_seconds is not None and len(frames_THWC) == chunk.num_frames:
            end_seconds = self.start_seconds + float(chunk.end_seconds)
            if end_seconds < self.end_seconds:
                self._note(self._last, end_seconds)

    def _note(self, step: Step, end_seconds: float) -> None:
        ((label, score),) = self._predictor.best(step.logits[None], k=1)
        self._timeline.append({"end_seconds": end_seconds, "label": label, "score": score})

    def columns(self) -> dict[str, Any]:
        if self._last is None:
            raise VideoError(Status.DECODER_CRASHED, NO_FRAME)
        best = self._predictor.best(self._last.logits[None])
        # Where the last frame ends: with the video, or earlier where the rest of it did not decode.
        seen_seconds = float(self._num_frames * self._view.frame_seconds)
        end_seconds = min(self.end_seconds, self.start_seconds + seen_seconds)
        has_timeline = self._view.timeline_seconds is not None
        if has_timeline and (not self._timeline or end_seconds > self._timeline[-1]["end_seconds"]):
            self._note(self._last, end_seconds)
        timeline = self._timeline if has_timeline else None
        return {**score_columns(best), "timeline": timeline, "num_views": 1, "predict_seconds": self._seconds}


class StreamPredictor(BatchingPredictor):
    """Scores streams with a checkpoint; ``view`` has ``span="stream"``. ``step`` is for many threads at once, one per
    video.

    Raises:
        UsageError: as `BatchingPredictor`, or the network cannot stream.
    """

    def __init__(self, checkpoint: Checkpoint, **settings: Any) -> None:
        require_stream(checkpoint.family, checkpoint.config)
        super().__init__(checkpoint, **settings)

    @property
    def has_lanes(self) -> bool:
        return True

    def batch_limits(self, max_videos: int) -> tuple[int, int]:
        return max_videos, _CPU_FRAMES if self.device.type == "cpu" else max_videos * self.view.num_frames

    def step(self, frames_THWC: np.ndarray, state: Any = None) -> Step:
        """The next frames of one video, uint8 (T, H, W, C), T at least 1; ``state``: of its last step, None at first.

        Raises:
            VideoError: MODEL_ERROR; the others in the batch have their answers.
        """
        return self.ask(frames_THWC, state).result()

    def begin(self) -> StreamScores:
        return StreamScores(self)

    @torch.inference_mode()
    def _forward(self, batch: list[Request]) -> list[Step]:
        started = time.perf_counter()
        frames_NTHWC = torch.from_numpy(np.stack([request.frames for request in batch])).to(self.device)
        pixels_NTCHW = normalise(frames_NTHWC, view=self.view, dtype=self._dtype)
        states = [self._fresh() if request.state is None else request.state for request in batch]
        state = states[0] if len(states) == 1 else states[0].cat(states)
        logits_NC, state = self._model.forward_stream(pixels_NTCHW, state)
        # Copies: as views each video's state would keep the states of the whole batch.
        after = [state] if len(batch) == 1 else [part.map(torch.Tensor.clone) for part in state.split()]
        logits_NC = logits_NC.float().cpu()
        seconds = (time.perf_counter() - started) / len(batch)
        return [Step(state=s, logits=logits, seconds=seconds) for s, logits in zip(after, logits_NC, strict=True)]

    def _fresh(self) -> Any:
        return self._model.initial_state(batch_size=1, height=self.view.size, width=self.view.size)
