"""Streams of frames: which ones, in which chunks, and that nothing but the file grows with the video."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import re
import time
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.support.poison_child import LIES, poisoned
from tests.support.videos import (
    FASTSTART,
    audio_only,
    frame_number,
    frame_numbers,
    make_video,
    resized_midway,
    truncated,
)
from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.types import Limits, Status, VideoInfo, ViewConfig
from vidray.video.byte_sources import DescriptorFile
from vidray.video.decoder import VideoDecoder, view_crops
from vidray.video.frame_selector import pictures_at
from vidray.video.sampling import Chunk, stream_chunks
from vidray.video.views import stream_views

VIEW = ViewConfig(num_frames=4, size=48, stride=6, span="stream", num_clips=1)
LIMITS = Limits(decode_timeout_seconds=20, decode_memory_bytes=256 * 1024**2)
HASTE_SECONDS = 2.0
BOUND_SECONDS = 12.0
GOOD = make_video(num_frames=61, width=48)


def stream(data: bytes, view: ViewConfig = VIEW, limits: Limits = LIMITS) -> tuple[np.ndarray, list[int], VideoInfo]:
    """All frames of a stream, the lengths of its chunks, and what is known at the end."""
    out = np.zeros(view.views_shape, np.uint8)
    chunks, info = [], VideoInfo()
    for num_frames, info in stream_views(data, view=view, limits=limits, out=out):  # noqa: B007
        chunks.append(out[0, :num_frames].copy())
    return np.concatenate(chunks), [len(chunk) for chunk in chunks], info


def plainly(data: bytes, *, stride: int) -> list[int]:
    """The numbers of the frames on screen every ``stride / 30`` seconds, by decoding all of them first."""
    with av.open(io.BytesIO(data)) as container:
        video = container.streams.video[0]
        time_base, start = Fraction(video.time_base), video.start_time or 0
        shown = sorted((f.pts, frame_number(f.to_ndarray(format="rgb24"))) for f in container.decode(video))
    with av.open(io.BytesIO(data)) as container:
        end = max(p.pts + p.duration for p in container.demux(video=0) if p.size)
    numbers = []
    for count in itertools.count():
        seconds = Fraction(count * stride, 30)
        if seconds >= (end - start) * time_base:
            return numbers
        before = [number for pts, number in shown if pts <= math.ceil(seconds / time_base) + start]
        numbers.append(before[-1] if before else shown[0][1])


# -- which frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 4, 6, 30])
@pytest.mark.parametrize(
    "video",
    [
        {"num_frames": 61},
        {"num_frames": 50, "max_b_frames": 3, "options": {"qp": "0", "bf": "3", "b_adapt": "0"}},
        {"num_frames": 61, "container": "matroska"},
        {"num_frames": 40, "container": "mpegts", "start_pts": 900},
        {"num_frames": 50, "fps": Fraction(24000, 1001)},
        {"num_frames": 90, "fps": 60},
        {"num_frames": 9, "pts": [0, 10, 90, 100, 400, 401, 900, 1510, 3000], "time_base": Fraction(1, 1000)},
        {"num_frames": 3, "pts": [0, 2000, 2100], "time_base": Fraction(1, 1000), "container": "matroska"},
        {"num_frames": 20, "start_pts": 500, "time_base": Fraction(1, 1000), "pts": [i * 40 for i in range(20)]},
        {"num_frames": 1},
        {"num_frames": 3},
    ],
    ids=["mp4", "B-frames", "matroska", "mpegts", "23.976", "60", "variable", "slides", "late start", "one", "three"],
)  # fmt: skip
def test_frames_are_those_on_screen_at_the_models_rate(video, stride):
    data = make_video(**{"width": 48, "height": 48, **video})
    frames, _, info = stream(data, dataclasses.replace(VIEW, stride=stride))
    assert frame_numbers(frames) == plainly(data, stride=stride)
    assert info.num_frames_decoded == info.num_frames_expected == video["num_frames"]


def test_at_the_videos_own_rate_every_frame_comes_once_also_where_times_are_rounded():
    for container in ("mp4", "matroska", "mpegts"):
        data = make_video(num_frames=64, width=48, container=container)
        assert frame_numbers(stream(data, dataclasses.replace(VIEW, stride=1))[0]) == list(range(64))


def test_pictures_are_the_centre_crops_of_the_frames():
    view = dataclasses.replace(VIEW, size=32, short_side=40)
    data = make_video(num_frames=13, width=96, height=64)
    with VideoDecoder(data) as decoder:
        clips = decoder.sample(list(_frame_spans(3)), num_frames=1, convert=view_crops(view))
    np.testing.assert_array_equal(stream(data, view)[0], np.stack([clip.pictures[0][0] for clip in clips]))


def _frame_spans(count: int):
    from vidray.types import ClipSpan

    for index in range(count):
        start = Fraction(index * VIEW.stride, 30)
        yield ClipSpan(index=index, start_seconds=start, end_seconds=start + Fraction(1, 30))


def test_sample_videos_stream_without_a_gap(sample_videos):
    paths = sorted(path for path in (sample_videos / "formats").iterdir() if path.is_file())
    assert paths
    for path in paths:
        data = path.read_bytes()
        frames, lengths, info = stream(data)
        assert info.duration_seconds is not None
        assert len(frames) == math.ceil(Fraction(info.duration_seconds).limit_denominator(10**6) / VIEW.frame_seconds)
        assert all(length == VIEW.num_frames for length in lengths[:-1]), path.name


def test_what_is_cut_off_is_not_there_and_a_damaged_end_is_not_a_still():
    data = make_video(num_frames=120, width=48, container_options=FASTSTART)
    frames, _, info = stream(truncated(data, 0.6))
    numbers = frame_numbers(frames)
    assert numbers == list(range(0, numbers[-1] + 1, 6))
    assert 20 < info.num_frames_decoded < info.num_frames_expected == 120
    assert len(numbers) <= info.num_frames_decoded // 6 + 1


def test_frames_that_change_size_are_streamed_like_others():
    assert len(stream(resized_midway(num_frames=20))[0]) == 4  # 20 frames at 25 per second are 0.8 s


class Pictures:
    """Converts frame numbers to themselves, and counts."""

    def __init__(self) -> None:
        self.converted: list[int] = []

    def __call__(self, frame: int) -> np.ndarray:
        self.converted.append(frame)
        return np.array(frame)


@pytest.mark.parametrize(
    ("times", "pts", "end", "shown"),
    [
        ([0, 3, 6], [0, 1, 2, 3, 4, 5, 6], math.inf, [0, 3, 6]),
        ([0, 1, 2, 3], [0, 2], math.inf, [0, 0, 2, 2]),
        ([0, 5], [3, 6], math.inf, [3, 3]),
        ([0, 1, 2], [0, 2, 1], math.inf, [0, 0, 2]),  # what comes too late is never on screen
        ([0, 1, 2, 3, 4, 5], [0, 1], 3, [0, 1, 1]),  # the rest did not decode
        ([0], [0, 1, 2], math.inf, [0]),
    ],
)
def test_the_picture_on_screen_is_that_of_the_last_frame_that_has_begun(times, pts, end, shown):
    convert, frames = Pictures(), iter([(p, p) for p in pts])
    pictures = pictures_at(iter(times), frames, convert=convert, end_of=lambda _: end)
    assert [int(picture) for picture in pictures] == shown
    assert convert.converted == sorted(set(shown)), "each is converted once"
    assert next(frames, None) is None, "frames after the last time are read too: they are counted"


# -- in which chunks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeline", "num_frames", "stride", "chunks"),
    [
        (None, 4, 6, [(4, None)] * 5),
        (1.0, 4, 6, [(2, None), (3, 1), (2, None), (3, 2)]),  # 5 frames a second
        (0.7, 8, 6, [(4, 0.7), (3, 1.4), (4, 2.1), (3, 2.8)]),
        (0.2, 8, 6, [(1, 0.2), (1, 0.4), (1, 0.6)]),
        (0.1, 8, 3, [(1, 0.1), (1, 0.2), (1, 0.3), (1, 0.4)]),
        (2.0, 8, 6, [(5, None), (5, 2), (5, None), (5, 4)]),
    ],
)
def test_chunks_end_at_the_timelines_times(timeline, num_frames, stride, chunks):
    view = dataclasses.replace(VIEW, timeline_seconds=timeline, num_frames=num_frames, stride=stride)
    expected = [Chunk(num_frames=n, end_seconds=None if end is None else Fraction(str(end))) for n, end in chunks]
    assert list(itertools.islice(stream_chunks(view), len(chunks))) == expected


def test_every_frame_before_a_time_of_the_timeline_is_in_a_chunk_before_it():
    for seconds in (0.15, 0.3, 1, 1.7, 10, 33.3):
        view = dataclasses.replace(VIEW, timeline_seconds=seconds, stride=4)
        num_frames = 0
        for chunk in itertools.islice(stream_chunks(view), 300):
            assert 1 <= chunk.num_frames <= view.num_frames
            num_frames += chunk.num_frames
            if chunk.end_seconds is not None:
                assert num_frames == sum(1 for k in range(num_frames + 2) if k * view.frame_seconds < chunk.end_seconds)


@pytest.mark.parametrize("num_frames", [61, 48, 1])
@pytest.mark.parametrize("timeline", [None, 0.5])
def test_chunks_put_together_are_the_stream(num_frames, timeline):
    """48 frames at stride 6 are two whole chunks of four, behind which an empty one says that it is over."""
    data = make_video(num_frames=num_frames, width=48)
    view = dataclasses.replace(VIEW, timeline_seconds=timeline)
    frames, lengths, _ = stream(data, view)
    assert frame_numbers(frames) == list(range(0, num_frames, 6))
    wanted = [chunk.num_frames for chunk in itertools.islice(stream_chunks(view), len(lengths))]
    assert lengths[:-1] == wanted[:-1]
    assert lengths[-1] < wanted[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clips": 2}, "one clip and one crop"),
        ({"num_crops": 3}, "one clip and one crop"),
        ({"span": "full", "timeline_seconds": 1.0}, "needs span 'stream'"),
        ({"timeline_seconds": 0.19}, "at least 0.2"),
        ({"timeline_seconds": 0.0}, "at least 0.2"),
        ({"timeline_seconds": math.inf}, "at least 0.2"),
        ({"timeline_seconds": math.nan}, "at least 0.2"),
        ({"span": "all"}, "'stride', 'full', 'stream' or 'segments'"),
    ],
)
def test_a_view_config_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VIEW, **changes)


def test_results_from_before_there_were_streams_keep_their_keys():
    """The text that the key hashes, as it was written before."""
    assert ViewConfig(num_frames=16, size=224).to_json() == (
        '{"aggregation": "prob", "mean": [0.485, 0.456, 0.406], "num_clips": 5, "num_crops": 1, "num_frames": 16, '
        '"short_side": null, "size": 224, "span": "stride", "std": [0.229, 0.224, 0.225], "stride": 4}'
    )
    configs = [VIEW, dataclasses.replace(VIEW, timeline_seconds=1), dataclasses.replace(VIEW, timeline_seconds=2)]
    assert len({view.to_json() for view in [*configs, dataclasses.replace(VIEW, span="full")]}) == 4
    assert all(ViewConfig.from_dict(view.to_dict()) == view for view in configs)


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "limits", "status"),
    [
        (GOOD, {"max_frames": 60}, Status.TOO_LARGE),
        (GOOD, {"max_duration_seconds": 2.0}, Status.TOO_LARGE),
        (GOOD, {"max_pixels": 48 * 48 - 1}, Status.TOO_LARGE),
        (audio_only(), {}, Status.NO_VIDEO),
        (b"", {}, Status.CORRUPT),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", {}, Status.UNSUPPORTED),
        (b"\0" * 5000, {}, Status.CORRUPT),
    ],
)
def test_what_cannot_be_streamed_says_why(data, limits, status):
    view = VIEW
    with Sandbox(view=view, limits=dataclasses.replace(LIMITS, **limits)) as sandbox:
        with pytest.raises(VideoError) as caught:
            list(sandbox.stream(data))
        assert caught.value.status is status
        pid = sandbox.pid
        if not limits:
            assert sum(len(frames) for frames, _ in sandbox.stream(GOOD)) == 11
            assert sandbox.pid == pid, "a bad file costs no child"


def test_nothing_is_kept_of_the_packets_of_a_stream():
    with VideoDecoder(GOOD, is_streamed=True) as decoder:
        assert len(decoder.timeline.packet_pts) == len(decoder.timeline.shown) == len(decoder.timeline.frame_pts) == 0
        assert decoder.timeline.num_packets == 61
        list(decoder.stream(VIEW, convert=view_crops(VIEW)))
        assert decoder._packets is None


# -- in the sandbox ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    values = {"decode_timeout_seconds": HASTE_SECONDS, "max_duration_seconds": 20.0}
    limits = dataclasses.replace(LIMITS, decode_memory_bytes=64 * 1024**2, **values)
    with Sandbox(view=VIEW, limits=limits, child_module="tests.support.poison_child") as sandbox:
        yield sandbox


def until_it_fails(sandbox: Sandbox, data: bytes, *, work_seconds: float = 0) -> tuple[list[int], VideoError | None]:
    """The frames that came, and what ended the stream."""
    numbers = []
    try:
        for frames, _ in sandbox.stream(data):
            numbers += frame_numbers(frames)
            time.sleep(work_seconds)
    except VideoError as error:
        return numbers, error
    return numbers, None


def numbers_of(sandbox: Sandbox, data: bytes) -> list[int]:
    return [number for frames, _ in sandbox.stream(data) for number in frame_numbers(frames)]


def test_the_sandbox_gives_the_same_chunks_and_counts_once_it_is_over(sandbox):
    chunks = list(sandbox.stream(GOOD))
    frames, lengths, info = stream(GOOD)
    assert [len(frames) for frames, _ in chunks] == lengths
    np.testing.assert_array_equal(np.concatenate([frames for frames, _ in chunks]), frames)
    last = chunks[-1][1]
    assert last == dataclasses.replace(info, decode_seconds=last.decode_seconds)
    assert 0 < last.decode_seconds < BOUND_SECONDS


def test_a_video_behind_a_longer_one_ends_where_it_ends(sandbox):
    """The input memory still holds the end of the longer one."""
    longer, shorter = make_video(num_frames=90, width=48), make_video(num_frames=7, width=48)
    assert len(shorter) < len(longer)
    assert numbers_of(sandbox, longer) == list(range(0, 90, 6))
    assert numbers_of(sandbox, shorter) == [0, 6]


@pytest.mark.parametrize("chunk", ["0", "2"])
@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("segfault", Status.DECODER_CRASHED, "SIGSEGV"),
        ("hang", Status.DECODE_TIMEOUT, "after 2 seconds"),
        ("memory", Status.OUT_OF_MEMORY, "bytes of memory"),
        ("key_error", Status.DECODER_CRASHED, "KeyError"),
        ("shrink_output", Status.DECODER_CRASHED, "Operation not permitted"),
    ],
)
def test_a_fault_in_the_middle_ends_one_video_and_not_the_next(sandbox, fault, status, message, chunk):
    started = time.monotonic()
    got, error = until_it_fails(sandbox, poisoned(GOOD, fault, chunk))
    assert time.monotonic() - started < BOUND_SECONDS
    assert error.status is status
    assert re.search(message, error.message)
    assert got == list(range(0, 61, 6))[: 4 * int(chunk)]
    assert numbers_of(sandbox, GOOD) == list(range(0, 61, 6))


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_lie_in_the_middle_ends_one_video_and_not_the_next(sandbox, lie):
    with pytest.raises(VideoError) as caught:
        numbers_of(sandbox, poisoned(GOOD, lie, "1"))
    assert caught.value.status is Status.DECODER_CRASHED
    assert "broke its protocol" in caught.value.message
    assert numbers_of(sandbox, GOOD) == list(range(0, 61, 6))


def test_a_stream_that_never_ends_ends_with_the_longest_video_that_is_allowed(sandbox):
    got, error = until_it_fails(sandbox, poisoned(GOOD, "endless", "1"))
    assert "broke its protocol: a chunk must be" in error.message
    assert len(got) <= 100  # 20 seconds at 5 frames each


def test_who_stops_in_the_middle_gets_no_late_chunk_with_the_next_video(sandbox):
    chunks = sandbox.stream(GOOD)
    next(chunks)
    chunks.close()
    assert numbers_of(sandbox, make_video(num_frames=7, width=48)) == [0, 6]


def test_each_chunk_has_a_deadline_of_its_own(sandbox):
    """Whoever works on the chunks may take longer than that."""
    assert len(until_it_fails(sandbox, GOOD, work_seconds=HASTE_SECONDS * 0.6)[0]) == 11


def test_a_part_of_a_file_descriptor_reads_like_a_file(tmp_path):
    data = bytes(range(200))
    (tmp_path / "file").write_bytes(data + b"of another")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    part, whole = DescriptorFile(fd, len(data)), io.BytesIO(data)
    for offset, whence, size in (
        (0, 0, 10),
        (50, 0, 100),
        (-7, 1, 3),
        (-20, 2, 50),
        (10, 2, 5),
        (199, 0, 2),
        (0, 2, 1),
    ):
        assert part.seek(offset, whence) == whole.seek(offset, whence)
        assert part.read(size) == whole.read(size)
        assert part.tell() == whole.tell()
    for offset, whence in ((-1, 0), (0, 0x10000)):
        with pytest.raises(ValueError, match="cannot seek"):
            part.seek(offset, whence)
    assert not hasattr(part, "name")
    os.close(fd)
