"""A file that is read in parts gives the frames, the pixels and the facts that it gives as a whole, or none at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.paged_file import paged
from tests.support.videos import FASTSTART, make_video, noisy_video, truncated
from vidray.errors import VideoError
from vidray.types import Limits, TimeRange, VideoInfo, ViewConfig
from vidray.video import decoder
from vidray.video.byte_sources import WINDOW_PAGES, HollowFile, NeedsWholeFileError, as_file
from vidray.video.decoder import VideoDecoder
from vidray.video.mp4_boxes import media_spans
from vidray.video.views import decode_views

VIEW = ViewConfig(num_frames=4, size=32, num_clips=3, stride=1)
LIMITS = Limits()
NO_LIMIT = 1 << 30
B_FRAMES = {"max_b_frames": 3, "options": {"preset": "medium", "qp": "10"}}

BY_INDEX: dict[str, Callable[[], bytes]] = {
    "index behind": lambda: make_video(num_frames=90, gop_size=10),
    "index in front": lambda: make_video(num_frames=90, container_options=FASTSTART),
    "QuickTime": lambda: make_video(num_frames=90, container="mov"),
    "B-frames": lambda: make_video(num_frames=90, **B_FRAMES),
    "open groups of pictures": lambda: make_video(
        num_frames=90,
        gop_size=10,
        max_b_frames=3,
        options={"preset": "medium", "qp": "10", "x264-params": "open-gop=1"},
    ),
    "refreshed bit by bit": lambda: make_video(
        num_frames=90, gop_size=10, options={"preset": "medium", "x264-params": "intra-refresh=1"}
    ),
    "sound": lambda: make_video(num_frames=90, with_audio=True, **B_FRAMES),
    "sound in another place": lambda: make_video(
        num_frames=90, with_audio=True, container_options={"chunk_duration": "9000000"}
    ),
    "two streams": lambda: make_video(num_frames=60, num_video_streams=2),
    "variable rate": lambda: make_video(num_frames=40, pts=[i * i for i in range(40)]),
    "begins late": lambda: make_video(num_frames=60, start_pts=40, **B_FRAMES),
    "turned": lambda: make_video(num_frames=60, rotation=90),
    "HEVC": lambda: make_video(num_frames=60, codec="libx265", **{"options": {"x265-params": "log-level=0"}}),
    "MPEG-4": lambda: make_video(num_frames=60, codec="mpeg4", max_b_frames=2),
    "AV1": lambda: make_video(num_frames=60, codec="libsvtav1", options={"preset": "12"}),
}
WHOLE: dict[str, Callable[[], bytes]] = {
    "fragments": lambda: make_video(num_frames=90, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "cut off": lambda: truncated(make_video(num_frames=90, container_options=FASTSTART), 0.7),
    "cut off within its index": lambda: make_video(num_frames=90)[:-300],
    "key frames that the index lacks": lambda: make_video(num_frames=90, gop_size=8).replace(b"stss", b"free"),
    "Matroska": lambda: make_video(num_frames=90, container="matroska"),
    "MPEG-TS": lambda: make_video(num_frames=90, container="mpegts"),
    "AVI": lambda: make_video(num_frames=90, container="avi", codec="mpeg4"),
    "a clip that is nearly all of it": lambda: make_video(num_frames=20),
    "no video": lambda: b"no video" * 1000,
    "nothing": lambda: b"",
}


def whole(data: bytes, **how: object) -> tuple[np.ndarray, VideoInfo]:
    return decode_views(data, view=VIEW, limits=LIMITS, **how)  # type: ignore[arg-type]


def in_parts(data: bytes, *, page_bytes: int = 64, **how: object) -> tuple[np.ndarray, VideoInfo]:
    with paged(data, page_bytes=page_bytes, max_pages=NO_LIMIT) as (file, _):
        return decode_views(file, view=VIEW, limits=LIMITS, **how)  # type: ignore[arg-type]


def assert_same(one: tuple[np.ndarray, VideoInfo], other: tuple[np.ndarray, VideoInfo]) -> None:
    np.testing.assert_array_equal(one[0], other[0])
    assert dataclasses.replace(one[1], decode_seconds=None) == dataclasses.replace(other[1], decode_seconds=None)


@pytest.mark.parametrize("kind", BY_INDEX)
def test_views_and_facts_are_those_of_the_whole_file(kind: str) -> None:
    data = BY_INDEX[kind]()
    expected = whole(data)
    assert len(np.unique(expected[0].reshape(-1, expected[0][0, 0].size), axis=0)) > 1, "pictures that differ"
    assert_same(in_parts(data), expected)
    part = TimeRange(start_seconds=0.5, end_seconds=1.4)
    assert_same(in_parts(data, time_range=part), whole(data, time_range=part))


@pytest.mark.parametrize("kind", WHOLE)
def test_what_the_index_does_not_say_needs_the_whole_file(kind: str) -> None:
    with pytest.raises(NeedsWholeFileError):
        in_parts(WHOLE[kind]())


@pytest.mark.parametrize("limits", [Limits(max_frames=89), Limits(max_duration_seconds=2.9), Limits(max_pixels=100)])
def test_limits_hold_by_the_index_alone(limits: Limits) -> None:
    data = make_video(num_frames=90)
    with paged(data, page_bytes=64) as (file, _):
        for given in (data, file):
            with pytest.raises(VideoError) as caught:
                decode_views(given, view=VIEW, limits=limits)
            assert caught.value.status == "too_large"


def test_damaged_files_are_the_same_in_parts_or_needed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole ones decoded as large ones are, without keeping their packets."""
    monkeypatch.setitem(VideoDecoder.__init__.__kwdefaults__, "max_kept_bytes", 0)
    good, num_same = make_video(num_frames=90, **B_FRAMES), 0
    for seed in range(60):
        random, data = np.random.default_rng(seed), bytearray(good)
        for at in random.integers(0, len(data), size=8):
            data[at] ^= int(random.integers(1, 256))
        results = []
        for decode in (in_parts, whole):
            try:
                results.append(decode(bytes(data)))
            except NeedsWholeFileError:
                break
            except (VideoError, MemoryError) as error:
                results.append(str(error))
        else:
            one, other = results
            num_same += not isinstance(one, str)
            assert one == other if isinstance(one, str) else not assert_same(one, other)
    assert num_same > 5


def test_sample_videos_are_the_same_in_parts(sample_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MAX_PART", 2.0)  # they are short
    files = [path for folder in (sample_videos, sample_videos.parent / "cases") for path in folder.rglob("*.*")]
    num_by_index = 0
    for path in sorted(files):
        data = path.read_bytes()
        for num_clips, num_frames in ((3, 2), (1, 8)):
            view = dataclasses.replace(VIEW, num_clips=num_clips, num_frames=num_frames)
            with paged(data, page_bytes=1000, max_pages=NO_LIMIT) as (file, _):
                try:
                    got = decode_views(file, view=view, limits=LIMITS)
                except NeedsWholeFileError:
                    continue
            assert_same(got, decode_views(data, view=view, limits=LIMITS))
            num_by_index += 1
    assert num_by_index > 20


def test_only_the_parts_that_the_clips_need_are_read_and_few_are_held() -> None:
    data = noisy_video()
    view, page_bytes = dataclasses.replace(VIEW, num_clips=2), len(data) // 400
    with paged(data, page_bytes=page_bytes) as (file, brought):
        assert_same(decode_views(file, view=view, limits=LIMITS), decode_views(data, view=view, limits=LIMITS))
        assert len(brought) * page_bytes < len(data) / 4
        assert max(brought) - min(brought) > 390, "from the beginning to the end"


class TestPagedFile:
    DATA = bytes(range(256)) * 40

    @pytest.mark.parametrize("page_bytes", [1, 7, 256, 100_000])
    def test_reads_as_a_file_in_memory_does(self, page_bytes: int) -> None:
        random, memory = np.random.default_rng(0), as_file(self.DATA)
        with paged(self.DATA, page_bytes=page_bytes, max_pages=NO_LIMIT) as (file, _):
            for _ in range(300):
                if random.random() < 0.3:
                    where, whence = int(random.integers(0, 11_000)), int(random.integers(0, 3))
                    where -= (0, memory.tell(), len(self.DATA))[whence]
                    assert file.seek(where, whence) == memory.seek(where, whence)
                size = int(random.integers(0, 600))
                assert file.read(size) == memory.read(size)
                assert file.tell() == memory.tell()

    def test_reading_on_brings_more_at_once_up_to_a_bound(self) -> None:
        calls: list[tuple[int, int]] = []
        with paged(self.DATA, page_bytes=10, max_pages=NO_LIMIT) as (file, brought):
            bring = file._bring
            file._bring = lambda page, count, slot: (calls.append((page, count)), bring(page, count, slot))
            file.read(600)
        assert [count for _, count in calls][:4] == [1, 2, 4, 8]
        assert max(count for _, count in calls) == 8
        assert brought == list(range(len(brought)))

    def test_no_more_pages_are_held_than_the_window_has(self) -> None:
        with paged(self.DATA, page_bytes=10, max_pages=NO_LIMIT) as (file, brought):
            for _ in range(3):
                file.seek(0)
                while file.read(100):
                    pass
            assert len(file._slots) <= WINDOW_PAGES
            assert len(brought) == 3 * len(self.DATA) / 10

    def test_it_gives_up_when_the_whole_file_would_have_been_cheaper(self) -> None:
        with paged(self.DATA, page_bytes=100) as (file, brought):
            assert len(file.read(20_000)) == len(self.DATA)
            assert not file.has_given_up
            file.seek(0)
            assert file.read(100) == b""
            assert file.has_given_up
            assert len(brought) == -(-len(self.DATA) // 100)


def test_a_hollow_file_is_zeros_where_it_has_holes_and_else_itself() -> None:
    data = bytes(range(1, 101))
    hollow = HollowFile(as_file(data), [(10, 20), (50, 100)])
    assert hollow.read(100) == data
    hollow.is_hollow, expected = True, data[:10] + bytes(10) + data[20:50] + bytes(50)
    for start in range(100):
        hollow.seek(start)
        pieces = []
        while piece := hollow.read(7):
            pieces.append(piece)
        assert b"".join(pieces) == expected[start:]


def test_the_boxes_of_samples_are_found_in_either_order() -> None:
    for options in ({}, FASTSTART):
        data = make_video(num_frames=10, container_options=options)
        (start, stop), *others = media_spans(as_file(data))
        assert not others
        assert data[start - 4 : start] == b"mdat"
        assert int.from_bytes(data[start - 8 : start - 4], "big") == stop - start + 8
        large = data[: start - 8] + b"\0\0\0\1mdat" + (stop - start + 16).to_bytes(8, "big") + data[start:]
        assert media_spans(as_file(large)) == [(start + 8, stop + 8)]
