"""From labelled rows to batches of augmented clips, in an order that only seeds decide.

    clips = make_clip_source(manifest.rows_of("train"), config, rank=0, world_size=2, view=view)
    for batch in clips.batches(epoch, start_sample):
        ...

An ordered window of clips is being made at any time, on whatever ``Pool`` there is. A bad video keeps its slot with
weight 0, so that ranks never disagree about the number of steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from vidray.errors import TooManyFailuresError
from vidray.training.config import TrainConfig
from vidray.training.data.augment import augment_config, crop_config
from vidray.training.data.clips import ClipJob, ClipSpec, MadeClip, time_range_of, video_of
from vidray.training.data.order import PADDING, EpochOrder, clip_seed, epoch_order, rank_slots
from vidray.training.data.pools import LocalPool, MakePool, Pending, Pool, check_decode_cpus
from vidray.types import ViewConfig

__all__ = ["Batch", "ClipSource", "bad_videos_table", "check_decode_cpus", "check_failure_rate", "make_clip_source"]

T = TypeVar("T")
Result = TypeVar("Result")

MAX_JOBS_TOGETHER = 4
"""Clips that one worker makes for one call: the later ones are fetched while the first is decoded."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch: as many slots on every rank and in every step."""

    pixels: torch.Tensor
    """(B, T, H, W, C) uint8 RGB."""
    labels: torch.Tensor
    """(B,) int64: of the pixels."""
    weights: torch.Tensor
    """(B,) float32: 1, or 0 where the slot's video is bad or there is none. Such a slot shows another good clip of this
    batch, with its label, so that neither batch norm nor mixup meets anything strange; zeros if no clip is good."""
    indices: torch.Tensor
    """(B,) int64: the slot's row in the training table; -1 where there is none."""
    epoch: int


def make_clip_source(
    table: pa.Table,
    config: TrainConfig,
    *,
    rank: int,
    world_size: int,
    view: ViewConfig,
    make_pool: MakePool | None = None,
) -> ClipSource:
    """The training clips of one rank.

    Args:
        table: the training rows (``LABELLED_SCHEMA``), the same on every rank.
        view: what the model sees; its number of clips and crops does not matter here.
        make_pool: where clips are made; None: threads of this process.
    """
    one = dataclasses.replace(view, num_clips=1, num_crops=1)
    spec = ClipSpec(view=one, crop=crop_config(config, one), augment=augment_config(config, one), limits=config.limits)
    pool = make_pool(spec) if make_pool else LocalPool(spec, num_parallel=config.decoders)
    return ClipSource(table, config, rank=rank, world_size=world_size, spec=spec, pool=pool)


class ClipSource:
    """Batches of one rank, epoch by epoch. Use it from one thread."""

    def __init__(
        self, table: pa.Table, config: TrainConfig, *, rank: int, world_size: int, spec: ClipSpec, pool: Pool
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self._table, self._config, self._spec, self._pool = table.combine_chunks(), config, spec, pool
        self._rank, self._world_size = rank, world_size
        self._labels = table["label_id"].to_numpy().astype(np.int64)
        self.num_samples = len(self._labels)
        """Clips per epoch, of all ranks together."""
        self.verdicts: dict[int, str] = {}
        """Row → status of videos that turned out bad. They are not decoded again."""
        self.messages: dict[int, str] = {}
        """Row → why, of those that this rank tried."""
        self.wait_seconds = 0.0
        """How long batches were waited for, so far."""
        self.decode_seconds = 0.0
        """How long the clips so far took to decode and augment, added up over all workers."""
        self._ahead: _Course | None = None

    def batches(self, epoch: int, start_sample: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a global batch on; what comes before is not decoded.

        Args:
            start_sample: clips of this epoch that all ranks together have consumed: a multiple of the global batch
                size, or all.

        Raises:
            ValueError: it is neither.
            RunError: clips cannot be made at all, which is no video's fault.
        """
        size = self._config.global_batch_size
        if start_sample % size and start_sample != self.num_samples:
            raise ValueError(f"start_sample must be a multiple of {size} or {self.num_samples}, got {start_sample}")
        course = self._take_course(epoch, start_sample)
        with course.window as made:
            for batch, clips in _one_ahead(lambda own: self._collect(made, own, epoch), course.rows, self._add_wait):
                self._note(clips)
                yield batch

    def prefetch(self, epoch: int) -> None:
        """Begin with the first clips of an epoch, so that they are there when its batches are asked for: while the
        epoch before is validated and saved. Videos known to be bad by now are left out."""
        self._drop_ahead()
        self._ahead = self._start_course(epoch, 0)

    def close(self) -> None:
        """End the pool."""
        self._drop_ahead()
        self._pool.close()

    def _take_course(self, epoch: int, start_sample: int) -> _Course:
        """What was prefetched, if it is that; else a new one."""
        ahead = self._ahead
        if ahead is not None and (ahead.epoch, ahead.start_sample) == (epoch, start_sample):
            self._ahead = None
            return ahead
        self._drop_ahead()
        return self._start_course(epoch, start_sample)

    def _start_course(self, epoch: int, start_sample: int) -> _Course:
        order, size = self._order(epoch), self._config.global_batch_size
        slots = [
            rank_slots(self.num_samples, start, batch_size=size, rank=self._rank, world_size=self._world_size)
            for start in range(start_sample, self.num_samples, size)
        ]
        rows = [np.where(batch == PADDING, PADDING, order.rows[batch]) for batch in slots]
        jobs = (self._job(order, epoch, position) for batch in slots for position in batch.tolist())
        window = _Window(self._pool, jobs, size=self._window_size, together=self._jobs_together)
        return _Course(epoch=epoch, start_sample=start_sample, rows=rows, window=window)

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.window.cancel()

    def _order(self, epoch: int) -> EpochOrder:
        config = self._config
        return epoch_order(self._labels, seed=config.seed, epoch=epoch, balanced=config.balanced_sampling)

    @property
    def _share(self) -> int:
        return -(-self._config.global_batch_size // self._world_size)

    @property
    def _jobs_together(self) -> int:
        """Few enough that a batch is spread over all workers."""
        return max(1, min(MAX_JOBS_TOGETHER, self._share // self._pool.num_parallel))

    @property
    def _window_size(self) -> int:
        """Clips under way or waiting: two batches, and work for every worker meanwhile."""
        return 2 * self._share + 2 * self._jobs_together * self._pool.num_parallel

    def _job(self, order: EpochOrder, epoch: int, position: int) -> ClipJob | None:
        """None where there is nothing to make: padding, or a video known to be bad."""
        if position == PADDING:
            return None
        row = int(order.rows[position])
        if row in self.verdicts:
            return None
        values = self._table.slice(row, 1).to_pylist()[0]
        occurrence = int(order.occurrences[position])
        seed = clip_seed(seed=self._config.seed, epoch=epoch, row=row, occurrence=occurrence)
        return ClipJob(row=row, video=video_of(values), time_range=time_range_of(values), seed=seed)

    def _collect(self, made: _Window, rows: np.ndarray, epoch: int) -> tuple[Batch, list[MadeClip]]:
        clips = [made.next() for _ in rows]
        donors = [slot for slot, clip in enumerate(clips) if clip is not None and clip.frames is not None]
        shown = np.array([slot if slot in donors else _donor(donors, slot) for slot in range(len(rows))])
        pixels_BTHWC = np.zeros((len(rows), *self._spec.shape), np.uint8)
        for slot, source in enumerate(shown.tolist()):
            clip = clips[source]
            if clip is not None and clip.frames is not None:
                pixels_BTHWC[slot] = clip.frames
        labels = np.where(rows[shown] == PADDING, 0, self._labels[rows[shown]])
        weights = np.isin(np.arange(len(rows)), donors)
        batch = Batch(
            pixels=torch.from_numpy(pixels_BTHWC),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights.astype(np.float32)),
            indices=torch.from_numpy(rows.astype(np.int64)),
            epoch=epoch,
        )
        return batch, [clip for clip in clips if clip is not None]

    def _add_wait(self, seconds: float) -> None:
        self.wait_seconds += seconds

    def _note(self, clips: Sequence[MadeClip]) -> None:
        for clip in clips:
            self.decode_seconds += clip.seconds
            if clip.frames is None:
                self.verdicts[clip.row] = clip.status.value
                self.messages[clip.row] = clip.message


def _one_ahead(work: Callable[[T], Result], items: Sequence[T], on_wait: Callable[[float], None]) -> Iterator[Result]:
    """``work`` of each item, in order; that of the next one is done while the consumer is busy with the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="vidray-batch") as thread:
        ahead = deque(thread.submit(work, item) for item in items[:1])
        for number in range(len(items)):
            ahead.extend(thread.submit(work, item) for item in items[number + 1 : number + 2])
            started = time.perf_counter()
            result = ahead.popleft().result()
            on_wait(time.perf_counter() - started)
            yield result


def _donor(donors: Sequence[int], slot: int) -> int:
    """The slot whose clip is shown in ``slot``: a good one in turn; itself if there is none."""
    return donors[slot % len(donors)] if donors else slot


class _Window:
    """Clips in the order of their jobs, with a bounded number of them under way."""

    def __init__(self, pool: Pool, jobs: Iterator[ClipJob | None], *, size: int, together: int) -> None:
        self._pool, self._jobs, self._size, self._together = pool, jobs, size, together
        self._groups: deque[tuple[list[bool], Pending | None]] = deque()
        """For each group of jobs, which of them are real, and their clips."""
        self._num_ahead = 0
        self._ready: deque[MadeClip | None] = deque()
        self._fill()

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Nobody waits for what is under way any more."""
        for _are_real, pending in self._groups:
            if pending is not None:
                pending.cancel()

    def next(self) -> MadeClip | None:
        """The next job's clip; None for a job that is None."""
        while not self._ready:
            are_real, pending = self._groups.popleft()
            clips = iter(pending.result() if pending else ())
            self._ready.extend(next(clips) if is_real else None for is_real in are_real)
            self._num_ahead -= len(are_real)
            self._fill()
        return self._ready.popleft()

    def _fill(self) -> None:
        while self._num_ahead < self._size:
            group = list(itertools.islice(self._jobs, self._together))
            if not group:
                return
            real = [job for job in group if job is not None]
            are_real = [job is not None for job in group]
            self._groups.append((are_real, self._pool.submit(real) if real else None))
            self._num_ahead += len(group)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Course:
    """An epoch's batches from one of them on, the first clips under way."""

    epoch: int
    start_sample: int
    rows: list[np.ndarray]
    """Each batch's rows of the table, ``PADDING`` where there is none."""
    window: _Window


BAD_VIDEOS_SCHEMA = pa.schema([(name, pa.string()) for name in ("uri", "label", "split", "status", "error")])


def bad_videos_table(table: pa.Table, verdicts: Mapping[int, str], messages: Mapping[int, str]) -> pa.Table:
    """What ``bad_videos.parquet`` holds of one part: one row per bad video, in the order of ``table``."""
    rows = sorted(verdicts)
    bad = table.select(["uri", "label", "split"]).take(pa.array(rows, pa.int64()))
    columns = [*bad.columns, [verdicts[row] for row in rows], [messages.get(row, "") for row in rows]]
    return pa.table(dict(zip(BAD_VIDEOS_SCHEMA.names, columns, strict=True)), schema=BAD_VIDEOS_SCHEMA)


def check_failure_rate(verdicts: Mapping[int, str], *, num_videos: int, max_rate: float) -> None:
    """Raises TooManyFailuresError if more than ``max_rate`` of the training videos are bad."""
    if len(verdicts) <= max_rate * num_videos:
        return
    counts = {status: list(verdicts.values()).count(status) for status in sorted(set(verdicts.values()))}
    named = ", ".join(f"{count} {status}" for status, count in counts.items())
    raise TooManyFailuresError(
        f"{len(verdicts)} of {num_videos} training videos are bad ({named}); --max-failure-rate allows {max_rate:g}"
    )
