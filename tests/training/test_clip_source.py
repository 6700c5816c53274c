"""Batches hold what the seeds say, whatever makes the clips, wherever one begins, and however bad a video is."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.poison_child import poisoned
from tests.support.videos import make_video
from vidray.sources.labels import LabelSource, load_labelled
from vidray.training.config import TrainConfig
from vidray.training.data.batch import Batch
from vidray.training.data.clip_source import ClipSource, make_clip_source
from vidray.training.data.clips import ClipJob, ClipSpec, ClipWorker, MadeClip
from vidray.training.data.order import epoch_order
from vidray.training.data.pools import ClipPool, LocalClipPool
from vidray.types import Limits, ViewConfig

VIEW = ViewConfig(num_frames=4, size=32, stride=1)
NUM_VIDEOS = 14
LIMITS = Limits(decode_timeout_seconds=2.0)


def coloured_video(number: int, **options: object) -> bytes:
    """All pixels of all frames are ``10 * number``, so that a clip tells its video however it is cropped."""
    level = 10 * number
    return make_video(
        num_frames=12, pix_fmt="yuv444p", draw=lambda _, w, h: np.full((h, w, 3), level, np.uint8), **options
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Training rows of videos ``00.mp4`` and so on; row i shows the colour 10 i. Labels 0 and 1 in turn."""
    folder = tmp_path_factory.mktemp("videos")
    return write_videos(folder, [coloured_video(number) for number in range(NUM_VIDEOS)])


def write_videos(folder: Path, videos: list[bytes]) -> pa.Table:
    lines = ["uri,label,split"]
    for number, data in enumerate(videos):
        (folder / f"{number:02d}.mp4").write_bytes(data)
        lines.append(f"{number:02d}.mp4,{'ab'[number % 2]},train")
    (folder / "val.mp4").write_bytes(b"never decoded")
    (folder / "labels.csv").write_text("\n".join([*lines, "val.mp4,a,val"]))
    return load_labelled(LabelSource(source=(str(folder / "labels.csv"),))).rows_of("train")


def make_config(**values: object) -> TrainConfig:
    return TrainConfig(
        **{"source": ("x",), "model": "x", "output": "x", "global_batch_size": 4, "limits": LIMITS, **values}
    )  # type: ignore[arg-type]


@pytest.fixture
def source_of() -> Iterator[Callable[..., ClipSource]]:
    """Makes clip sources and closes them after the test."""
    sources: list[ClipSource] = []

    def make(table: pa.Table, *, rank: int = 0, world_size: int = 1, make_pool=None, **values: object) -> ClipSource:
        config = make_config(**values)
        if make_pool is None:
            make_pool = functools.partial(LocalClipPool, num_parallel=2)
        source = make_clip_source(table, config, rank=rank, world_size=world_size, view=VIEW, make_pool=make_pool)
        sources.append(source)
        return source

    yield make
    for source in sources:
        source.close()


def assert_equal(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        for name in ("pixels", "labels", "weights", "rows"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def videos_shown(batch: Batch) -> list[int]:
    """Which video's pixels each slot shows."""
    return (batch.pixels.float().mean(dim=(1, 2, 3, 4)) / 10).round().int().tolist()


def test_an_epoch_shows_every_video_once_with_its_label(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    source = source_of(table)
    assert source.num_samples == NUM_VIDEOS
    batches = list(source.batches(0))
    assert [batch.pixels.shape for batch in batches] == [(4, 4, 32, 32, 3)] * 4
    assert {batch.pixels.dtype for batch in batches} == {torch.uint8}
    rows = torch.cat([batch.rows for batch in batches])
    assert rows[:NUM_VIDEOS].tolist() == epoch_order(np.zeros(NUM_VIDEOS, int), seed=0, epoch=0).rows.tolist()
    for batch in batches:
        good = batch.weights == 1
        assert torch.equal(good, batch.rows >= 0)
        shown = torch.tensor(videos_shown(batch))
        assert torch.equal(shown[good].long(), batch.rows[good])
        assert torch.equal(batch.labels, shown.long() % 2)


def test_the_last_batch_is_padded_with_clips_that_do_not_count(
    table: pa.Table, source_of: Callable[..., ClipSource]
) -> None:
    last = list(source_of(table).batches(0))[-1]
    assert last.weights.tolist() == [1, 1, 0, 0]
    assert last.rows.tolist()[2:] == [-1, -1]
    shown = videos_shown(last)
    assert set(shown[2:]) <= set(shown[:2])
    assert last.labels.tolist() == [video % 2 for video in shown]


def test_ranks_share_a_global_batch_without_overlap(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    whole = list(source_of(table, global_batch_size=6).batches(1))
    parts = [list(source_of(table, global_batch_size=6, rank=rank, world_size=3).batches(1)) for rank in range(3)]
    assert {len(batches) for batches in parts} == {len(whole)} == {3}
    for step, batch in enumerate(whole):
        slots = [part[step] for part in parts]
        assert torch.equal(torch.cat([slot.rows for slot in slots]), batch.rows)
        good = batch.weights == 1
        assert torch.equal(torch.cat([slot.pixels for slot in slots])[good], batch.pixels[good])


@pytest.mark.parametrize("recipe", ["guide", "videomae"])
def test_a_resumed_epoch_is_the_tail_of_one_that_was_not_interrupted(
    table: pa.Table, source_of: Callable[..., ClipSource], recipe: str
) -> None:
    uninterrupted = list(source_of(table, recipe=recipe).batches(3))
    for start in (4, 12, NUM_VIDEOS):
        resumed = list(source_of(table, recipe=recipe).batches(3, start))
        assert_equal(resumed, uninterrupted[-(-start // 4) :])


def test_resuming_decodes_nothing_that_it_skips(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    asked: list[int] = []

    class Watched(LocalClipPool):
        def submit(self, jobs: list[ClipJob]) -> Future[list[MadeClip]]:  # type: ignore[override]
            asked.extend(job.row for job in jobs)
            return super().submit(jobs)

    source = source_of(table, make_pool=functools.partial(Watched, num_parallel=2))
    list(source.batches(0, 8))
    assert sorted(asked) == sorted(epoch_order(np.zeros(NUM_VIDEOS, int), seed=0, epoch=0).rows[8:].tolist())


def test_a_position_within_a_global_batch_is_refused(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    with pytest.raises(ValueError, match="multiple of 4 or 14, got 3"):
        next(source_of(table).batches(0, 3))


def test_clips_are_the_same_whatever_makes_them(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    one = list(
        source_of(table, recipe="videomae", make_pool=functools.partial(LocalClipPool, num_parallel=1)).batches(0)
    )
    four = list(
        source_of(table, recipe="videomae", make_pool=functools.partial(LocalClipPool, num_parallel=4)).batches(0)
    )
    assert_equal(one, four)


@pytest.mark.usefixtures("local_ray")
def test_ray_tasks_make_the_same_clips(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    from vidray.training.data.ray_pool import RayClipPool

    local = list(source_of(table).batches(0))
    ray_pool = functools.partial(RayClipPool, num_parallel=2, cpus_per_task=0.5)
    assert_equal(list(source_of(table, make_pool=ray_pool).batches(0)), local)


def test_epochs_show_other_clips(table: pa.Table, source_of: Callable[..., ClipSource], tmp_path: Path) -> None:
    moving = write_videos(tmp_path, [make_video(num_frames=40) for _ in range(4)])
    source = source_of(moving, flip=False)
    first, second = (
        {int(i): p for b in source.batches(e) for i, p in zip(b.rows, b.pixels, strict=True)} for e in (0, 1)
    )
    assert sum(not torch.equal(first[row], second[row]) for row in range(4)) >= 3


def test_balanced_epochs_show_rare_labels_as_often(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    uneven = pa.concat_tables([table.filter(pa.array(np.arange(NUM_VIDEOS) % 2 == 0)), table.slice(1, 1)])
    source = source_of(uneven, balanced_sampling=True)
    batches = list(source.batches(0))
    labels = torch.cat([batch.labels[batch.weights == 1] for batch in batches])
    assert labels.bincount().tolist() == [4, 4]


# -- bad videos -------------------------------------------------------------------------------------------------------

POISON = {2: "segfault", 5: "hang", 9: "signal"}


@pytest.fixture(scope="module")
def poisoned_table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """As ``table``, but video 1 is no video, 12 is missing, and those of POISON attack the decoder."""
    videos = [coloured_video(number) for number in range(NUM_VIDEOS)]
    for number, fault in POISON.items():
        videos[number] = poisoned(videos[number], fault, "SIGABRT" if fault == "signal" else "")
    videos[1] = b"\0" * 5000
    folder = tmp_path_factory.mktemp("poisoned")
    table = write_videos(folder, videos)
    (folder / "12.mp4").unlink()
    return table


def poison_pool(spec: ClipSpec) -> ClipPool:
    return LocalClipPool(dataclasses.replace(spec, child_module="tests.support.poison_child"), num_parallel=2)


def test_bad_videos_keep_their_slots_and_nothing_stops(
    table: pa.Table, poisoned_table: pa.Table, source_of: Callable[..., ClipSource]
) -> None:
    source = source_of(poisoned_table, make_pool=poison_pool)
    batches, good = list(source.batches(0)), list(source_of(table).batches(0))
    assert {row: bad.status for row, bad in sorted(source.bad_videos.items())} == {
        1: "corrupt",
        2: "decoder_crashed",
        5: "decode_timeout",
        9: "decoder_crashed",
        12: "not_found",
    }
    for batch, expected in zip(batches, good, strict=True):
        assert torch.equal(batch.rows, expected.rows)
        is_bad = torch.isin(batch.rows, torch.tensor([1, 2, 5, 9, 12]))
        assert torch.equal(batch.weights, torch.where(is_bad, 0.0, expected.weights))
        keeps = batch.weights == 1
        assert torch.equal(batch.pixels[keeps], expected.pixels[keeps])
        shown = videos_shown(batch)
        assert set(shown) <= set(batch.rows[keeps].tolist()), "a bad slot shows a good clip of its batch"
        assert batch.labels.tolist() == [video % 2 for video in shown], "with the label of what it shows"


def test_a_video_known_to_be_bad_is_not_decoded_again(
    poisoned_table: pa.Table, source_of: Callable[..., ClipSource]
) -> None:
    first = source_of(poisoned_table, make_pool=poison_pool)
    batches = list(first.batches(0))
    asked: list[int] = []

    class Watched(LocalClipPool):
        def submit(self, jobs: list[ClipJob]) -> Future[list[MadeClip]]:  # type: ignore[override]
            asked.extend(job.row for job in jobs)
            return super().submit(jobs)

    second = source_of(poisoned_table, make_pool=functools.partial(Watched, num_parallel=2))
    second.bad_videos.update(first.bad_videos)
    assert_equal(list(second.batches(0)), batches)
    assert sorted(asked) == [row for row in range(NUM_VIDEOS) if row not in first.bad_videos]


def test_a_batch_without_any_good_video_is_black_and_counts_nothing(
    tmp_path: Path, source_of: Callable[..., ClipSource]
) -> None:
    source = source_of(write_videos(tmp_path, [b"\0" * 100] * 4))
    (batch,) = source.batches(0)
    assert batch.weights.tolist() == [0, 0, 0, 0]
    assert not batch.pixels.any()
    assert batch.labels.tolist() == [row % 2 for row in batch.rows.tolist()]


def test_prefetching_changes_nothing_but_when_clips_are_made(
    table: pa.Table, source_of: Callable[..., ClipSource]
) -> None:
    source, other = source_of(table), source_of(table)
    source.prefetch(1)
    for epoch in (1, 0):  # the one that was prefetched, and one that was not
        for batch, expected in zip(source.batches(epoch), other.batches(epoch), strict=True):
            assert torch.equal(batch.pixels, expected.pixels)
            assert torch.equal(batch.rows, expected.rows)


# -- prefetching  ---------------------------------------------------------------------------------------------------


class SlowPool:
    """Makes black clips, when told to. Counts what is under way."""

    num_parallel = 2

    def __init__(self, spec: ClipSpec) -> None:
        self._shape = spec.shape
        self.num_asked = 0
        self.waiting: list[tuple[list[ClipJob], Future[list[MadeClip]]]] = []
        self.changed = threading.Condition()

    def submit(self, jobs: list[ClipJob]) -> Future[list[MadeClip]]:
        future: Future[list[MadeClip]] = Future()
        with self.changed:
            self.num_asked += len(jobs)
            self.waiting.append((jobs, future))
            self.changed.notify_all()
        return future

    def release(self, which: int) -> None:
        jobs, future = self.waiting.pop(which)
        future.set_result([MadeClip(row=job.row, frames=np.zeros(self._shape, np.uint8)) for job in jobs])

    def close(self) -> None:
        """Nothing to end."""


def test_batches_are_in_order_whichever_clip_is_ready_first(
    table: pa.Table, source_of: Callable[..., ClipSource]
) -> None:
    made: list[SlowPool] = []

    def make_pool(spec: ClipSpec) -> SlowPool:
        made.append(SlowPool(spec))
        return made[0]

    batches = source_of(table, make_pool=make_pool).batches(0)
    taken: list[Batch] = []
    consumer = threading.Thread(target=lambda: taken.extend(batches))
    consumer.start()
    pool = made[0]
    while consumer.is_alive():
        with pool.changed:
            pool.changed.wait_for(lambda: bool(pool.waiting), timeout=0.2)
        if pool.waiting:
            pool.release(-1)  # the last one asked for
    consumer.join()
    order = epoch_order(np.zeros(NUM_VIDEOS, int), seed=0, epoch=0).rows.tolist()
    assert torch.cat([batch.rows for batch in taken]).tolist() == [*order, -1, -1]


def test_a_bounded_number_of_clips_is_under_way(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    many = pa.concat_tables([table] * 20)
    made: list[SlowPool] = []

    def make_pool(spec: ClipSpec) -> SlowPool:
        made.append(SlowPool(spec))
        return made[0]

    batches = source_of(many, make_pool=make_pool).batches(0)
    thread = threading.Thread(target=lambda: next(batches))
    thread.start()
    pool = made[0]
    while thread.is_alive():
        with pool.changed:
            pool.changed.wait_for(lambda: bool(pool.waiting), timeout=0.2)
        if thread.is_alive() and pool.waiting:
            pool.release(0)
    under_way = 2 * 4 + 2 * 2 * 2  # two batches, and two groups of two clips for each of two workers
    assert pool.num_asked <= 2 * 4 + under_way, "beyond the batch taken and the one put together, of 280 clips"
    for _, future in pool.waiting:
        future.cancel()


def test_what_was_prefetched_in_vain_is_cancelled(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    made: list[SlowPool] = []

    def make_pool(spec: ClipSpec) -> SlowPool:
        made.append(SlowPool(spec))
        return made[0]

    source = source_of(table, make_pool=make_pool)
    source.prefetch(1)
    first = [future for _, future in made[0].waiting]
    source.prefetch(2)
    second = [future for _, future in made[0].waiting[len(first) :]]
    assert first
    assert all(future.cancelled() for future in first)
    assert second
    assert not any(future.cancelled() for future in second)
    source.close()
    assert all(future.cancelled() for future in second)


def test_leaving_an_epoch_early_leaves_nothing_running(table: pa.Table, source_of: Callable[..., ClipSource]) -> None:
    source = source_of(table)
    batches = source.batches(0)
    first = next(batches)
    batches.close()
    assert_equal([next(source.batches(0))], [first])


def test_a_part_of_a_file_is_what_training_shows(tmp_path: Path) -> None:
    video = make_video(num_frames=60, pix_fmt="yuv444p", draw=lambda n, w, h: np.full((h, w, 3), 4 * n, np.uint8))
    (tmp_path / "long.mp4").write_bytes(video)
    (tmp_path / "t.csv").write_text(
        "uri,label,split,start,end\nlong.mp4,a,train,0,0.5\nlong.mp4,b,train,1,1.5\nlong.mp4,a,val,1.5,2\n"
    )
    table = load_labelled(LabelSource(source=(str(tmp_path / "t.csv"),))).rows_of("train")
    source = make_clip_source(table, make_config(), rank=0, world_size=1, view=VIEW)
    (batch,) = source.batches(0)
    source.close()
    for row, pixels in zip(batch.rows.tolist(), batch.pixels, strict=True):
        if row >= 0:
            numbers = pixels.float().mean(dim=(1, 2, 3)) / 4
            first = (0, 30)[row]
            assert first - 0.5 < numbers.min()
            assert numbers.max() < first + 14.5


def test_a_worker_decodes_on_after_every_kind_of_death(poisoned_table: pa.Table) -> None:
    source = make_clip_source(poisoned_table, make_config(), rank=0, world_size=1, view=VIEW)
    spec = dataclasses.replace(source._spec, child_module="tests.support.poison_child")
    order = epoch_order(np.zeros(NUM_VIDEOS, int), seed=0, epoch=0)
    jobs = [source._job(order, 0, position) for position in range(NUM_VIDEOS)]
    with ClipWorker(spec) as worker:
        made = worker.make([job for job in jobs if job is not None and job.row not in (5,)])
    assert [clip.row for clip in made if clip.frames is None] == [
        row for row in order.rows.tolist() if row in (1, 2, 9, 12)
    ]
    source.close()
