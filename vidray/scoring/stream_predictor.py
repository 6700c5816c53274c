"""Chunks of many videos in, the scores so far out: one stream network on one device. Plain torch, no Ray.

Every video has a state of its own, so videos of any length and at any frame can share a batch, and one that ends or
fails takes nothing with it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vidray.checkpoints.checkpoint import Checkpoint
from vidray.errors import VideoError
from vidray.models.families import require_stream
from vidray.models.predict import aggregate, normalise, top_k
from vidray.models.processors import check_view
from vidray.scoring.predictor import (
    DTYPES,
    MAX_MESSAGE,
    Precision,
    choose_device,
    choose_precision,
    device_lost,
    load_network,
)
from vidray.types import Status, ViewConfig

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


@dataclass(kw_only=True, slots=True, eq=False)  # one is itself and no other: arrays have no answer to ==
class _Request:
    frames: np.ndarray
    """(T, H, W, C) uint8."""
    state: Any
    answer: Future[Step] = field(default_factory=Future)


class StreamPredictor:
    """Scores streams with a checkpoint. ``step`` is for many threads at once, one per video: what they bring while the
    network is busy goes through it together.

    Args:
        view: the effective view config, with ``span="stream"``.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or any torch device.
        precision: see ``choose_precision``.
        max_videos: in one batch.
        num_threads: CPU threads, for the whole process; each runs batches of its own.
        top_k: how many labels ``best`` returns.

    Raises:
        UsageError: the checkpoint cannot be loaded, cannot stream, or the device is not there.
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
    ) -> None:
        require_stream(checkpoint.family, checkpoint.config)
        check_view(view, config=checkpoint.config, family=checkpoint.family)
        self.checkpoint, self.view = checkpoint, view
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self._dtype, self._top_k, self._max_videos = DTYPES[self.precision], top_k, max_videos
        on_cpu = self.device.type == "cpu"
        num_lanes = num_threads or 1 if on_cpu else 1
        if num_threads is not None:
            torch.set_num_threads(1 if num_lanes > 1 else num_threads)
        self._max_frames = _CPU_FRAMES if on_cpu else max_videos * view.num_frames
        self._model: Any = load_network(checkpoint, dtype=self._dtype, device=self.device)
        self._waiting: deque[_Request] = deque()
        self._has_news = threading.Condition()
        for lane in range(num_lanes):
            threading.Thread(target=self._serve, name=f"vidray-predict-{lane}", daemon=True).start()

    def step(self, frames_THWC: np.ndarray, state: Any = None) -> Step:
        """The next frames of one video, uint8 (T, H, W, C), T at least 1; ``state``: of its last step, None at first.

        Raises:
            VideoError: MODEL_ERROR; the others in the batch have their answers.
        """
        request = _Request(frames=frames_THWC, state=state)
        with self._has_news:
            self._waiting.append(request)
            self._has_news.notify()
        return request.answer.result()

    def best(self, logits_C: torch.Tensor, *, k: int | None = None) -> tuple[tuple[str, float], ...]:
        """The best (label, score), best first: ``top_k`` of them, or ``k``.

        Raises:
            VideoError: MODEL_ERROR if the logits are not finite.
        """
        if not torch.isfinite(logits_C).all():
            raise VideoError(Status.MODEL_ERROR, f"the model's logits are not finite in {self.precision}")
        problem_type = self.checkpoint.meta.problem_type
        scores_C = aggregate(logits_C[None], aggregation=self.view.aggregation, problem_type=problem_type)
        return top_k(scores_C, labels=self.checkpoint.labels, k=k or self._top_k)

    def _serve(self) -> None:
        """A lane's life: it ends with the process."""
        while True:
            self._answer(self._take())

    def _take(self) -> list[_Request]:
        """The request that waits longest, with others of as many frames."""
        with self._has_news:
            self._has_news.wait_for(lambda: self._waiting)
            num_frames = len(self._waiting[0].frames)
            room = max(1, min(self._max_videos, self._max_frames // num_frames))
            batch = [request for request in self._waiting if len(request.frames) == num_frames][:room]
            for request in batch:
                self._waiting.remove(request)
        return batch

    def _answer(self, batch: list[_Request]) -> None:
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

    def _try(self, batch: list[_Request]) -> Exception | None:
        """Answers the requests, or says why it cannot."""
        try:
            steps = self._forward(batch)
        except Exception as error:
            return error.with_traceback(None)  # whose frames would keep the failed batch's memory
        for request, step in zip(batch, steps, strict=True):
            request.answer.set_result(step)
        return None

    @torch.inference_mode()
    def _forward(self, batch: list[_Request]) -> list[Step]:
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
