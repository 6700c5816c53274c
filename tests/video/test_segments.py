"""Windows of a whole video: their times, and that each has the frames that the same span has as a clip of its own."""

from __future__ import annotations

import dataclasses
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.support.videos import FASTSTART, make_video, truncated
from tests.video.test_decoder import KINDS
from vidray.sandbox.sandbox import Sandbox
from vidray.types import Limits, TimeRange, VideoInfo, ViewConfig
from vidray.video.decoder import VideoDecoder, view_crops
from vidray.video.sampling import segment_spans
from vidray.video.views import decode_views, stream_views

VIEW = ViewConfig(num_frames=4, size=32, span="segments", num_clips=1, segment_seconds=0.8, segment_stride_seconds=0.5)


def windows(*, seconds: Fraction | float, length: float, stride: float | None = None) -> list[tuple[float, float]]:
    view = dataclasses.replace(VIEW, segment_seconds=length, segment_stride_seconds=stride)
    spans = segment_spans(duration_seconds=Fraction(str(seconds)), view=view)
    return [(float(span.start_seconds), float(span.end_seconds)) for span in spans]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"seconds": 6, "length": 2}, [(0, 2), (2, 4), (4, 6)]),
        ({"seconds": 7, "length": 2}, [(0, 2), (2, 4), (4, 6), (5, 7)]),
        ({"seconds": 5, "length": 2, "stride": 1}, [(0, 2), (1, 3), (2, 4), (3, 5)]),
        ({"seconds": 1.5, "length": 2}, [(0, 1.5)]),
        ({"seconds": 2, "length": 2, "stride": 0.5}, [(0, 2)]),
        ({"seconds": 2.1, "length": 0.7}, [(0, 0.7), (0.7, 1.4), (1.4, 2.1)]),  # 3 * 0.7 > 2.1 in floats
        ({"seconds": 10, "length": 2, "stride": 5}, [(0, 2), (5, 7), (8, 10)]),
    ],
)
def test_windows_cover_the_video_and_the_last_ends_with_it(asked, expected) -> None:
    assert windows(**asked) == expected


def streamed(data: bytes, view: ViewConfig = VIEW) -> tuple[list[np.ndarray], VideoInfo]:
    """Every window, (T, H, W, C), and what is known at the end."""
    out = np.zeros(view.views_shape, np.uint8)
    found, info = [], VideoInfo()
    for num_frames, info in stream_views(io.BytesIO(data), view=view, limits=Limits(), out=out):  # noqa: B007
        assert num_frames in (0, view.num_frames)
        if num_frames:
            found.append(out[0].copy())
    return found, info


def alone(data: bytes, span, view: ViewConfig = VIEW) -> np.ndarray:
    """The clip that a file has whose video is the window alone."""
    whole = dataclasses.replace(view, span="full", segment_seconds=None, segment_stride_seconds=None)
    time_range = TimeRange(start_seconds=span.start_seconds, end_seconds=span.end_seconds)
    return decode_views(data, view=whole, limits=Limits(), time_range=time_range)[0][0]


INTERLACED = {"num_frames": 60, "options": {"preset": "ultrafast", "qp": "0", "x264-params": "interlaced=1"}}
MORE = {"interlaced": INTERLACED, "ten key frames a second": {"num_frames": 90, "gop_size": 3}}


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_a_window_has_the_frames_of_a_clip_of_its_own(kind: str) -> None:
    data = make_video(**(KINDS | MORE)[kind])
    spans = list(segment_spans(duration_seconds=VideoDecoder(data).duration, view=VIEW))
    found, info = streamed(data)
    for window, span in zip(found, spans, strict=True):
        np.testing.assert_array_equal(window, alone(data, span))
    assert info.num_frames_decoded == info.num_frames_expected == VideoDecoder(data).timeline.num_shown


def damaged() -> bytes:
    """The index is whole, but the bytes of some frames in the middle are not."""
    data = bytearray(make_video(num_frames=150, codec="mpeg4", gop_size=15, container_options=FASTSTART))
    middle = len(data) // 2
    data[middle : middle + len(data) // 30] = b"\xff" * (len(data) // 30)
    return bytes(data)


def cut() -> bytes:
    return truncated(make_video(num_frames=120, container_options=FASTSTART), 0.7)


@pytest.mark.parametrize("make", [damaged, cut])
def test_of_a_damaged_file_the_windows_are_still_those_of_clips(make) -> None:
    data = make()
    decoder = VideoDecoder(data)
    spans = list(segment_spans(duration_seconds=decoder.duration, view=VIEW))
    expected = decoder.sample(spans, num_frames=VIEW.num_frames, convert=view_crops(VIEW))
    found, info = streamed(data)
    for window, clip in zip(found, expected, strict=True):
        np.testing.assert_array_equal(window, [picture[0] for picture in clip.pictures])
    counts = decoder.info.num_frames_decoded, decoder.info.num_frames_expected
    assert (info.num_frames_decoded, info.num_frames_expected) == counts
    assert counts[0] < counts[1]


def test_of_sample_videos_too(sample_videos: Path) -> None:
    for path in sorted(sample_videos.glob("[fu]*/*")):
        data = path.read_bytes()
        decoder = VideoDecoder(data)
        spans = list(segment_spans(duration_seconds=decoder.duration, view=VIEW))
        expected = decoder.sample(spans, num_frames=VIEW.num_frames, convert=view_crops(VIEW))
        found, info = streamed(data)
        for window, clip in zip(found, expected, strict=True):
            np.testing.assert_array_equal(window, [picture[0] for picture in clip.pictures], err_msg=path.name)
        assert info.num_frames_decoded == decoder.info.num_frames_decoded


def test_each_frame_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with windows that overlap by nine tenths."""
    view = dataclasses.replace(VIEW, segment_seconds=2.0, segment_stride_seconds=0.2)
    fed: list[int] = []
    packets_from = VideoDecoder._packets_from

    def counting(self, first):
        for index, packet in packets_from(self, first):
            fed.append(index)
            yield index, packet

    monkeypatch.setattr(VideoDecoder, "_packets_from", counting)
    streamed(make_video(num_frames=180, codec="mpeg4", container="matroska"), view)
    assert fed == list(range(181)), "the last, which is none, makes the codec give out what it holds"


def test_through_the_sandbox_too() -> None:
    data = make_video(num_frames=100)
    with Sandbox(view=VIEW, limits=Limits()) as sandbox:
        for _ in range(2):  # the second in the same child
            chunks = [frames for frames, _ in sandbox.stream(data)]
            expected, _ = streamed(data)
            assert len(chunks.pop()) == 0
            np.testing.assert_array_equal(chunks, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_seconds": None}, "needs segment_seconds"),
        ({"segment_seconds": 0.0}, "segment_seconds must be a number of seconds above 0, got 0.0"),
        ({"segment_stride_seconds": float("inf")}, "segment_stride_seconds must be"),
        ({"num_clips": 2}, "span 'segments' is one clip and one crop"),
        ({"decoder": "pytorchvideo"}, "only decoder 'vidray' can do span 'segments'"),
        ({"span": "stride"}, "need span 'segments', got 'stride'"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VIEW, **changes)
