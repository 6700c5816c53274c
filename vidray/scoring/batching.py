"""Chunks of many videos in, an answer for each out: one network on one device that many threads ask at once. No Ray.

What is asked while the network is busy goes through it together.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vidray.checkpoints.checkpoint import Checkpoint
from vidray.errors import VideoError
from vidray.models.predict import FeatureTap, aggregate, top_k
from vidray.models.processors import check_view
from vidray.scoring.predictor import (
    DTYPES,
    MAX_MESSAGE,
    Precision,
    choose_device,
    choose_precision,
    device_lost,
    load_network,
    not_finite,
)
from vidray.types import WHOLE_FILE, EmbeddingKind, Status, TimeRange, VideoInfo, ViewConfig
from vidray.video.sampling import Chunk

import torch  # isort: skip  # after the predictor, which tells its threads how to wait


@dataclass(kw_only=True, slots=True, eq=False)  # one is itself and no other: arrays have no answer to ==
class Request:
    """A chunk of a video, and where its answer goes."""

    frames: np.ndarray
    """(T, H, W, C) uint8."""
    state: Any = None
    """What the network remembers of the video, if it does."""
    answer: Future[Any] = field(default_factory=Future)


NO_FRAME = "the decoder gave neither a frame nor a reason"


class VideoScores(ABC):
    """What is known of one video so far."""

    info: VideoInfo = VideoInfo()
    """What decoding found out so far; whoever adds chunks sets it."""
    time_range: TimeRange = WHOLE_FILE
    """What of the file counts as the video; whoever adds chunks sets it."""

    @property
    def start_seconds(self) -> float:
        """Where the video begins in its file."""
        return self.time_range.start_seconds

    @property
    def end_seconds(self) -> float:
        """Where it ends."""
        return min(self.info.duration_seconds or 0.0, self.time_range.end_seconds or math.inf)

    @abstractmethod
    def add(self, chunk: Chunk, frames_THWC: np.ndarray) -> None:
        """The video's next frames, uint8, at least one.

        Raises:
            VideoError: MODEL_ERROR.
        """

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """The columns of its row that say what the network found.

        Raises:
            VideoError: MODEL_ERROR, or DECODER_CRASHED if there was no frame.
        """


class BatchingPredictor(ABC):
    """Loads a checkpoint's network when made, and answers chunks in batches.

    Args:
        view: the effective view config, of chunks.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or any torch device.
        precision: see ``choose_precision``.
        max_videos: in one batch, at most.
        num_threads: CPU threads, for the whole process. Each runs batches of its own, or all share one
            (``has_lanes``).
        top_k: how many labels ``best`` returns.
        embedding: which embeddings are asked for, if any.

    Raises:
        UsageError: the checkpoint cannot be loaded, cannot take such chunks, or the device is not there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        view: ViewConfig,
        device: str = "auto",
        precision: Precision = "auto",
        max_videos: int = 16,
        num_threads: int | None = None,
        top_k: int = 5,
        embedding: EmbeddingKind | None = None,
    ) -> None:
        check_view(view, config=checkpoint.config, family=checkpoint.family)
        self.checkpoint, self.view, self.device = checkpoint, view, choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self._dtype, self._top_k = DTYPES[self.precision], top_k
        self._max_videos, self._max_frames = self.batch_limits(max_videos)
        num_lanes = num_threads or 1 if self.device.type == "cpu" and self.has_lanes else 1
        if num_threads is not None:
            torch.set_num_threads(1 if num_lanes > 1 else num_threads)
        self._model: Any = load_network(checkpoint, dtype=self._dtype, device=self.device)
        self.embedding = embedding
        self._tap = FeatureTap(self._model, checkpoint.family) if embedding and checkpoint.labels else None
        self._waiting: deque[Request] = deque()
        self._has_news = threading.Condition()
        for lane in range(num_lanes):
            threading.Thread(target=self._serve, name=f"vidray-predict-{lane}", daemon=True).start()

    @property
    @abstractmethod
    def has_lanes(self) -> bool:
        """Whether on a CPU each thread runs batches of its own."""

    @abstractmethod
    def batch_limits(self, max_videos: int) -> tuple[int, int]:
        """Videos in one batch, at most; and frames, if there is more than one video."""

    @abstractmethod
    def begin(self) -> VideoScores:
        """For a new video. Many threads may have one each, whose chunks share batches."""

    @abstractmethod
    def _forward(self, batch: list[Request]) -> list[Any]:
        """The answers to chunks of one length."""

    def ask(self, frames_THWC: np.ndarray, state: Any = None) -> Future[Any]:
        """The answer to a chunk, uint8, when it is there: what ``_forward`` gives, or VideoError (MODEL_ERROR); the
        others in the batch have theirs."""
        request = Request(frames=frames_THWC, state=state)
        with self._has_news:
            self._waiting.append(request)
            self._has_news.notify()
        return request.answer

    def best(self, logits_VC: torch.Tensor, *, k: int | None = None) -> tuple[tuple[str, float], ...]:
        """The best (label, score), best first, of the logits of one video: ``top_k`` of them, or ``k``. Of a checkpoint
        without labels: none.

        Raises:
            VideoError: MODEL_ERROR if the logits are not finite.
        """
        if not torch.isfinite(logits_VC).all():
            raise VideoError(Status.MODEL_ERROR, not_finite(self.checkpoint, self.precision))
        if not self.checkpoint.labels:
            return ()
        problem_type = self.checkpoint.meta.problem_type
        scores_C = aggregate(logits_VC, aggregation=self.view.aggregation, problem_type=problem_type)
        return top_k(scores_C, labels=self.checkpoint.labels, k=k or self._top_k)

    def _serve(self) -> None:
        """A lane's life: it ends with the process."""
        while True:
            self._answer(self._take())

    def _take(self) -> list[Request]:
        """The request that waits longest, with others of as many frames."""
        with self._has_news:
            self._has_news.wait_for(lambda: self._waiting)
            num_frames = len(self._waiting[0].frames)
            room = max(1, min(self._max_videos, self._max_frames // num_frames))
            batch = [request for request in self._waiting if len(request.frames) == num_frames][:room]
            for request in batch:
                self._waiting.remove(request)
        return batch

    def _answer(self, batch: list[Request]) -> None:
        error = self._try(batch)
        if error is None:
            return
        if isinstance(error, torch.OutOfMemoryError):
            self._max_videos = max(1, len(batch) // 2)  # for good
        lost = device_lost(error)
        if lost is None and len(batch) > 1:
            for request in batch:
                self._answer([request])
            return
        answer = lost or VideoError(Status.MODEL_ERROR, f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
        for request in batch:
            request.answer.set_exception(answer)

    def _try(self, batch: list[Request]) -> Exception | None:
        """Answers the requests, or says why it cannot."""
        try:
            answers = self._forward(batch)
        except Exception as error:
            return error.with_traceback(None)  # whose frames would keep the failed batch's memory
        for request, answer in zip(batch, answers, strict=True):
            request.answer.set_result(answer)
        return None
