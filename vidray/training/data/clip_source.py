"""From labelled rows to batches of augmented clips, in an order that only seeds decide.

    clips = make_clip_source(manifest.rows_of("train"), config, rank=0, world_size=2, view=view)
    for batch in clips.batches(epoch, start_sample):
        ...

A bounded number of clips, in order, is being made at any time, on whatever ``ClipPool`` there is. A bad video keeps its
slot with weight 0, so that ranks never disagree about the number of steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from vidray.training.config import TrainConfig
from vidray.training.data.augment import augment_config, crop_config
from vidray.training.data.bad_videos import BadVideo
from vidray.training.data.batch import Batch
from vidray.training.data.clips import ClipJob, ClipSpec, MadeClip, job_of
from vidray.training.data.order import PADDING, EpochOrder, clip_seed, epoch_order, rank_slots
from vidray.training.data.pools import ClipPool, LocalClipPool, MakeClipPool
from vidray.training.data.prefetcher import Prefetcher, map_one_ahead
from vidray.types import ViewConfig

MAX_GROUP_SIZE = 4
"""Clips that one worker makes for one call: the later ones are fetched while the first is decoded."""


def make_clip_source(
    table: pa.Table,
    config: TrainConfig,
    *,
    rank: int,
    world_size: int,
    view: ViewConfig,
    make_pool: MakeClipPool | None = None,
) -> ClipSource:
    """The training clips of one rank.

    Args:
        table: the training rows (``LABELLED_SCHEMA``), the same on every rank.
        view: what the model sees; its number of clips and crops does not matter here.
        make_pool: where clips are made; None: threads of this process.
    """
    one = dataclasses.replace(view, num_clips=1, num_crops=1)
    spec = ClipSpec(view=one, crop=crop_config(config, one), augment=augment_config(config, one), limits=config.limits)
    pool = make_pool(spec) if make_pool else LocalClipPool(spec, num_parallel=config.decoders)
    return ClipSource(table, config, rank=rank, world_size=world_size, spec=spec, pool=pool)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochStream:
    """An epoch's batches from one of them on, the first clips under way."""

    epoch: int
    start_sample: int
    batch_rows: list[np.ndarray]
    """Each batch's rows of the table, ``PADDING`` where there is none."""
    prefetcher: Prefetcher


class ClipSource:
    """Batches of one rank, epoch by epoch. Use it from one thread."""

    def __init__(
        self, table: pa.Table, config: TrainConfig, *, rank: int, world_size: int, spec: ClipSpec, pool: ClipPool
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self._table, self._config, self._spec, self._pool = table.combine_chunks(), config, spec, pool
        self._rank, self._world_size = rank, world_size
        self._labels = table["label_id"].to_numpy().astype(np.int64)
        self.num_samples = len(self._labels)
        """Clips per epoch, of all ranks together."""
        self.bad_videos: dict[int, BadVideo] = {}
        """By row, the videos that turned out bad. They are not decoded again."""
        self._prefetched: EpochStream | None = None

    def batches(self, epoch: int, start_sample: int = 0) -> Generator[Batch, None, None]:
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
        stream = self._take_stream(epoch, start_sample)
        with stream.prefetcher as prefetcher:
            for batch, clips in map_one_ahead(lambda rows: self._next_batch(prefetcher, rows), stream.batch_rows):
                self._note_bad_videos(clips)
                yield batch

    def prefetch(self, epoch: int) -> None:
        """Begin with the first clips of an epoch, so that they are there when its batches are asked for: while the
        epoch before is validated and saved. Videos known to be bad by now are left out."""
        self._cancel_prefetched()
        self._prefetched = self._start_stream(epoch, 0)

    def close(self) -> None:
        """End the pool."""
        self._cancel_prefetched()
        self._pool.close()

    def _take_stream(self, epoch: int, start_sample: int) -> EpochStream:
        """What was prefetched, if it is that; else a new one."""
        stream = self._prefetched
        if stream is not None and (stream.epoch, stream.start_sample) == (epoch, start_sample):
            self._prefetched = None
            return stream
        self._cancel_prefetched()
        return self._start_stream(epoch, start_sample)

    def _start_stream(self, epoch: int, start_sample: int) -> EpochStream:
        order, size = self._order(epoch), self._config.global_batch_size
        slots = [
            rank_slots(self.num_samples, start, batch_size=size, rank=self._rank, world_size=self._world_size)
            for start in range(start_sample, self.num_samples, size)
        ]
        rows = [np.where(batch == PADDING, PADDING, order.rows[batch]) for batch in slots]
        jobs = (self._job(order, epoch, position) for batch in slots for position in batch.tolist())
        prefetcher = Prefetcher(self._pool, jobs, max_ahead=self._max_ahead, group_size=self._group_size)
        return EpochStream(epoch=epoch, start_sample=start_sample, batch_rows=rows, prefetcher=prefetcher)

    def _cancel_prefetched(self) -> None:
        stream, self._prefetched = self._prefetched, None
        if stream is not None:
            stream.prefetcher.cancel()

    def _order(self, epoch: int) -> EpochOrder:
        config = self._config
        return epoch_order(self._labels, seed=config.seed, epoch=epoch, balanced=config.balanced_sampling)

    @property
    def _num_slots(self) -> int:
        """Slots per batch of this rank."""
        return -(-self._config.global_batch_size // self._world_size)

    @property
    def _group_size(self) -> int:
        """Few enough that a batch is spread over all workers."""
        return max(1, min(MAX_GROUP_SIZE, self._num_slots // self._pool.num_parallel))

    @property
    def _max_ahead(self) -> int:
        """Clips under way or waiting: two batches, and work for every worker meanwhile."""
        return 2 * self._num_slots + 2 * self._group_size * self._pool.num_parallel

    def _job(self, order: EpochOrder, epoch: int, position: int) -> ClipJob | None:
        """None where there is nothing to make: padding, or a video known to be bad."""
        if position == PADDING:
            return None
        row = int(order.rows[position])
        if row in self.bad_videos:
            return None
        occurrence = int(order.occurrences[position])
        seed = clip_seed(seed=self._config.seed, epoch=epoch, row=row, occurrence=occurrence)
        return job_of(self._table, row, seed=seed)

    def _next_batch(self, prefetcher: Prefetcher, rows: np.ndarray) -> tuple[Batch, list[MadeClip]]:
        """The batch of these rows, and the clips that were made for it."""
        clips = [prefetcher.next() for _ in rows]
        frames = [None if clip is None else clip.frames for clip in clips]
        return self._batch_of(frames, rows), [clip for clip in clips if clip is not None]

    def _batch_of(self, frames: Sequence[np.ndarray | None], rows: np.ndarray) -> Batch:
        good = [slot for slot, clip_THWC in enumerate(frames) if clip_THWC is not None]
        shown = np.array([slot if slot in good else _donor(good, slot) for slot in range(len(rows))])
        pixels_BTHWC = np.zeros((len(rows), *self._spec.shape), np.uint8)
        for slot, source in enumerate(shown.tolist()):
            clip_THWC = frames[source]
            if clip_THWC is not None:
                pixels_BTHWC[slot] = clip_THWC
        labels = np.where(rows[shown] == PADDING, 0, self._labels[rows[shown]])
        weights = np.isin(np.arange(len(rows)), good)
        return Batch(
            pixels=torch.from_numpy(pixels_BTHWC),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights.astype(np.float32)),
            rows=torch.from_numpy(rows.astype(np.int64)),
        )

    def _note_bad_videos(self, clips: Sequence[MadeClip]) -> None:
        for clip in clips:
            if clip.frames is None:
                self.bad_videos[clip.row] = BadVideo(status=clip.status.value, message=clip.message)


def _donor(good: Sequence[int], slot: int) -> int:
    """The slot whose clip is shown in ``slot``: a good one in turn; itself if there is none."""
    return good[slot % len(good)] if good else slot
