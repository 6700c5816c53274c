"""A checkpoint that is called with videos and answers with labels, as Transformers' pipeline does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np

from vidray.checkpoints.checkpoint import read_checkpoint, with_labels
from vidray.errors import RunError, UsageError
from vidray.flags import VIEW_FLAGS, override_view, parse_views, require
from vidray.sandbox.sandbox import Sandbox
from vidray.scoring.config import Device, Precision
from vidray.scoring.predictor import Predictor
from vidray.sources.tar_shards import video_at
from vidray.storage.fetch import fetch
from vidray.types import WHOLE_FILE, Limits, Scores, TimeRange, VideoInfo
from vidray.video.views import views_of_frames

Answer = list[dict[str, Any]]
"""The best labels of a video, best first: ``[{"score": 0.93, "label": "archery"}, …]``."""

_VIDEOS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a model saw of a video, and made of it."""

    views: np.ndarray
    """(V, T, H, W, C) uint8, all crops of the first clip first."""
    info: VideoInfo
    answer: Answer
    view_answers: list[Answer]
    """(V,) by each view alone."""


class Classifier:
    """Answers with the best labels of videos.

        with vidray.load("my-model") as classifier:
            classifier("clip.mp4")                      # [{"score": 0.93, "label": "archery"}, …]
            classifier(["a.mp4", "s3://bucket/b.mp4"])  # one such list for each
            classifier(frames_THWC, fps=25)             # frames in memory

    Files are decoded in a sandbox of their own process, as `vidray score` does, and give the same scores.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        views: str | None = None,
        device: Device = "auto",
        precision: Precision = "auto",
        top_k: int = 5,
        limits: Limits | None = None,
        labels: Sequence[str] = (),
        prompt: str = "{}",
        **view_flags: Any,
    ) -> None:
        """Loads the model.

        Args:
            model: a checkpoint folder (local, s3://, gs://, az://) or a Hugging Face Hub id.
            views: per video, as CLIPSxCROPS; None: what the checkpoint was validated with, else 5x1.
            top_k: labels per video.
            limits: what one video may cost.
            labels: for models that compare videos with texts (X-CLIP): what to tell apart.
            prompt: what such a model reads for a label, which stands for ``{}``.
            view_flags: ``span``, ``stride``, ``aggregation``, ``square_pixels``, ``video_stream``, as `vidray score`
                has them.

        Raises:
            UsageError: the model or a setting will not do.
            TypeError: there is no such setting.
        """
        if unknown := view_flags.keys() - set(VIEW_FLAGS):
            raise TypeError(f"got {sorted(unknown)}, allowed are {VIEW_FLAGS}")
        require(views is None or parse_views(views) is not None, "views", views, "like 5x3 or 1x1")
        checkpoint = read_checkpoint(str(model))
        if labels:
            checkpoint = with_labels(checkpoint, labels, prompt=prompt)
        try:
            view = override_view(checkpoint.view, views, view_flags)
        except ValueError as error:
            raise UsageError(str(error)) from error
        require(top_k >= 1, "top_k", top_k, "at least 1")
        self._limits = limits or Limits()
        self._predictor = Predictor(checkpoint, view=view, device=device, precision=precision, top_k=top_k)
        self._sandbox = Sandbox(view=view, limits=self._limits)
        self.labels = checkpoint.labels
        """All labels, in the order of the logits."""
        self.view = view
        """How videos become views."""

    def __call__(self, videos: Any, *, fps: Fraction | float = 30) -> Answer | list[Answer]:
        """The best labels of one video, or a list of them for a list of videos.

        Args:
            videos: each a path or URI, the bytes of a file, or frames (T, H, W, 3) uint8 RGB.
            fps: of frames in memory.

        Raises:
            VideoError: a video cannot be fetched or decoded.
            RunError: the model cannot score one.
            ValueError: frames have another shape or type.
        """
        is_one = not isinstance(videos, list | tuple)
        answers: list[Answer] = []
        items = [videos] if is_one else list(videos)
        for start in range(0, len(items), _VIDEOS_AT_ONCE):
            views = [self._views_of(video, Fraction(fps)) for video in items[start : start + _VIDEOS_AT_ONCE]]
            answers += [_answer(scores) for scores in self._predictor.predict(views)]
        return answers[0] if is_one else answers

    def look(self, video: str | os.PathLike[str] | bytes, *, time_range: TimeRange = WHOLE_FILE) -> Look:
        """The answer to one video, and what led to it.

        Args:
            video: a path or URI, or the bytes of a file.
            time_range: what of the file counts as the video.

        Raises:
            VideoError, RunError: as a call.
        """
        views_VTHWC, info = self._decode(video, time_range)
        (scores,) = self._predictor.predict([views_VTHWC])
        answer = _answer(scores)
        view_answers = [_answer(one) for one in self._predictor.score_each_view(scores)]
        return Look(views=views_VTHWC, info=info, answer=answer, view_answers=view_answers)

    def close(self) -> None:
        """End the decoding process. The next call starts another."""
        self._sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _views_of(self, video: Any, fps: Fraction) -> np.ndarray:
        if isinstance(video, str | os.PathLike | bytes | bytearray | memoryview):
            return self._decode(video, WHOLE_FILE)[0]
        return views_of_frames(np.asarray(video), fps=fps, view=self.view)

    def _decode(self, video: Any, time_range: TimeRange) -> tuple[np.ndarray, VideoInfo]:
        if isinstance(video, str | os.PathLike):
            video = fetch(video_at(os.fspath(video)), limits=self._limits)
        return self._sandbox.decode(bytes(video), time_range=time_range)


def _answer(scores: Scores) -> Answer:
    if scores.error is not None:
        raise RunError(scores.error)
    return [{"score": score, "label": label} for label, score in scores.top_k]
