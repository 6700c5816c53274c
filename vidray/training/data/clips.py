"""One clip: what is asked for, and the worker that fetches, decodes and augments it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from vidray.errors import RunError, VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.sources.rows import time_range_of, video_of
from vidray.storage.fetch import fetch
from vidray.training.data.augment import AugmentConfig, augment
from vidray.types import WHOLE_FILE, Limits, Status, TimeRange, VideoRef, ViewConfig
from vidray.video.random_crops import CropConfig

DECODER_NICENESS = 5
"""Training threads wait for each other in every layer: a decoder that takes the core of one of them stops them all. At
this niceness a decoder uses idle CPU, and a quarter of a core at worst. If that is too little, training waits for data
and leaves it whole cores."""
FETCH_THREADS = 4
"""Objects that one worker fetches at a time, at most those of the jobs that it was given together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSpec:
    """What all clips of a run have in common; without ``crop`` and ``augment``, all videos of an evaluation."""

    view: ViewConfig
    """``num_clips`` and ``num_crops`` are 1 for training clips."""
    crop: CropConfig | None = None
    """None: all views of the view config, as scoring takes them."""
    augment: AugmentConfig | None = None
    limits: Limits
    child_module: str = "vidray.sandbox.child"
    """What runs in the sandbox."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of a clip."""
        return self.view.views_shape[1:]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipJob:
    """One clip to make."""

    row: int
    """The video's row."""
    video: VideoRef
    time_range: TimeRange = WHOLE_FILE
    seed: int = 0
    """Decides all that is random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeClip:
    """What became of a job."""

    row: int
    frames: np.ndarray | None
    """(T, H, W, C) uint8, or (V, T, H, W, C) in an evaluation; None if the video is bad."""
    status: Status = Status.OK
    message: str = ""


def job_of(table: pa.Table, row: int, *, seed: int = 0) -> ClipJob:
    """The job for a row of a labelled manifest's table."""
    values = table.slice(row, 1).to_pylist()[0]
    return ClipJob(row=row, video=video_of(values), time_range=time_range_of(values), seed=seed)


class ClipWorker:
    """Makes clips, one after the other, with a sandbox of its own. One thread at a time may use it."""

    def __init__(self, spec: ClipSpec) -> None:
        self._spec = spec
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="vidray-fetch")
        self._sandbox = Sandbox(
            view=spec.view,
            limits=spec.limits,
            crop=spec.crop,
            child_module=spec.child_module,
            niceness=DECODER_NICENESS,
        )
        self._sandbox.start()

    def make(self, jobs: Sequence[ClipJob]) -> list[MadeClip]:
        """The clips of these jobs, in order. A bad video is a clip without frames, never an exception.

        Raises:
            RunError: a store was away until the deadline (``Limits.fetch_deadline_seconds``): no video is to blame.
        """
        return [self._make(job, data) for job, data in zip(jobs, self._fetched(jobs), strict=True)]

    def close(self) -> None:
        """End the sandbox and the fetching threads."""
        self._sandbox.close()
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetched(self, jobs: Sequence[ClipJob]) -> Iterator[bytes | VideoError]:
        futures = [self._fetchers.submit(self._fetch, job.video) for job in jobs]
        return (future.result() for future in futures)

    def _fetch(self, video: VideoRef) -> bytes | VideoError:
        try:
            return fetch(video, limits=self._spec.limits)
        except VideoError as error:
            if error.is_outage:
                raise RunError(f"cannot read {video.uri}, its store is away: {error.message}") from error
            return error

    def _make(self, job: ClipJob, data: bytes | VideoError) -> MadeClip:
        try:
            if isinstance(data, VideoError):
                raise data
            views_VTHWC, _ = self._sandbox.decode(data, time_range=job.time_range, seed=job.seed)
        except VideoError as error:
            return MadeClip(row=job.row, frames=None, status=error.status, message=error.message)
        config = self._spec.augment
        frames = views_VTHWC if config is None else augment(views_VTHWC[0], config, seed=job.seed)
        return MadeClip(row=job.row, frames=frames)
