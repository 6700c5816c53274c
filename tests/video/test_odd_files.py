"""Files as cameras, broadcasts, cutters and joiners make them: the right frames, counted as what a player shows.

Each frame is numbered by what it shows; how many there are is what the test drew, or what a full decode gives.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from tests.support.videos import frame_numbers, make_video, truncated
from vidray.types import Limits, ViewConfig
from vidray.video.decoder import VideoDecoder, full_size, view_crops
from vidray.video.random_crops import ClipDraw, CropConfig
from vidray.video.sampling import spread_spans
from vidray.video.views import decode_views, stream_views

B_FRAMES = {"max_b_frames": 3, "options": {"preset": "medium", "qp": "10", "x264-params": "b-adapt=0:scenecut=0"}}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
SHARP = {"qscale": "1", "crf": "1", "b": "8M"}
TICKS_33_BIT = 2**33
WHOLE = ViewConfig(num_frames=8, size=32, num_clips=1, span="full")


def whole(data: bytes, *, max_kept_bytes: int = 1 << 30) -> tuple[list[int], VideoDecoder]:
    """The numbers of all frames, in the order in which a clip of the whole video has them."""
    decoder = VideoDecoder(data, max_kept_bytes=max_kept_bytes)
    spans = spread_spans(duration_seconds=decoder.duration, view=WHOLE)
    (clip,) = decoder.sample(spans, num_frames=decoder.timeline.num_shown, convert=full_size())
    return frame_numbers(clip.pictures), decoder


def cut_at_key_frame(data: bytes, number: int) -> bytes:
    """A Matroska from its nth key frame on, which is at 0, so that frames before it are below zero."""
    sink, options = io.BytesIO(), {"avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(data)) as source, av.open(sink, "w", format="matroska", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        first = [index for index, packet in enumerate(packets) if packet.is_keyframe][number]
        start = packets[first].pts
        for packet in packets[first:]:
            packet.stream, packet.pts, packet.dts = stream, packet.pts - start, packet.dts - start
            target.mux(packet)
    return sink.getvalue()


def shortened_by_an_edit(data: bytes, milliseconds: int) -> bytes:
    """An mp4 whose edit list (ISO/IEC 14496-12, 8.6.6) ends its one segment earlier."""
    at = data.index(b"elst") + 4 + 4 + 4
    return data[:at] + milliseconds.to_bytes(4, "big") + data[at + 4 :]


def with_stale_tag(data: bytes) -> bytes:
    """A Matroska whose DURATION tag says a minute more than there is."""
    at = data.index(b"00:00:0", data.index(b"DURATION"))
    return data[:at] + b"00:01:0" + data[at + 7 :]


def across_the_wrap() -> bytes:
    """A transport stream whose 33-bit clock starts anew after 1.5 s: FFmpeg lets it begin below zero."""
    offset = Fraction(TICKS_33_BIT, 90000) - Fraction(3, 2) - 2  # the muxer adds 0.7 s twice, about
    return make_video(
        num_frames=180, container="mpegts", gop_size=30, container_options={"output_ts_offset": str(float(offset))}
    )


def joined(container: str) -> bytes:
    """Two files, one behind the other: 40 frames and 50, which begin at the same time."""
    return b"".join(make_video(num_frames=number, container=container, **B_FRAMES) for number in (40, 50))


def packed_b_frames() -> bytes:
    """An AVI as DivX wrote it: a B-frame lies in the packet of the frame before it in the file, and in its own place
    there is one that is not coded (ISO/IEC 14496-2, `vop_coded` 0). The "p" in the encoder's name says so."""
    made = make_video(num_frames=60, container="avi", codec="mpeg4", max_b_frames=1, options=SHARP)
    sink = io.BytesIO()
    with av.open(io.BytesIO(made)) as source, av.open(sink, "w", format="avi") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        coded = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        coded[0] = re.sub(rb"Lavc[0-9.]+", b"DivX503b1393p", coded[0])
        for number, payload in enumerate(coded):
            is_packed = number > 0 and is_b_frame(payload)
            follows = number > 0 and number + 1 < len(coded) and is_b_frame(coded[number + 1])
            data = NOT_CODED if is_packed else payload + (coded[number + 1] if follows else b"")
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 30), number, number
            packet.is_keyframe = number == 0
            target.mux(packet)
    return sink.getvalue()


NOT_CODED = bytes.fromhex("000001b6504f")


def is_b_frame(packet: bytes) -> bool:
    return packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 == 2


INTACT: dict[str, tuple[Callable[[], bytes], list[int]]] = {
    "mp4": (lambda: make_video(num_frames=60, **B_FRAMES), [*range(60)]),
    "fragmented mp4": (lambda: make_video(num_frames=60, container_options=FRAGMENTED), [*range(60)]),
    "mp4 whose edit list ends early": (
        lambda: shortened_by_an_edit(make_video(num_frames=60, **B_FRAMES), 1000),
        [*range(30)],
    ),
    "mov": (lambda: make_video(num_frames=60, container="mov"), [*range(60)]),
    "mkv": (lambda: make_video(num_frames=60, container="matroska", **B_FRAMES), [*range(60)]),
    "mkv with a stale DURATION": (
        lambda: with_stale_tag(make_video(num_frames=60, container="matroska")),
        [*range(60)],
    ),
    "avi": (lambda: make_video(num_frames=60, container="avi", codec="ffv1"), [*range(60)]),
    "avi of H.264 with B-frames": (lambda: make_video(num_frames=60, container="avi", **B_FRAMES), [*range(60)]),
    "avi that was written into a pipe": (
        lambda: b"RIFF\xff\xff\xff\xff" + make_video(num_frames=60, container="avi", codec="mpeg4", options=SHARP)[8:],
        [*range(60)],
    ),
    "avi with frames that are not there": (
        lambda: make_video(
            num_frames=20, container="avi", codec="ffv1", pts=[*range(10), *range(40, 50)], time_base=Fraction(1, 30)
        ),
        [*range(20)],
    ),
    "ts": (lambda: make_video(num_frames=60, container="mpegts", **B_FRAMES), [*range(60)]),
    "ts that begins below zero": (across_the_wrap, [*range(180)]),
    "two joined ts": (lambda: joined("mpegts"), [*range(40), *range(50)]),
    "ts that jumps by ten hours": (
        lambda: make_video(
            num_frames=60, container="mpegts", pts=[*range(30), *range(30 * 36000, 30 * 36000 + 30)], gop_size=10
        ),
        [*range(60)],
    ),
    "asf": (
        lambda: make_video(num_frames=60, container="asf", codec="msmpeg4", options=SHARP),
        [*range(60)],
    ),
    "avi with packed B-frames": (packed_b_frames, [*range(60)]),
    "mpeg": (
        lambda: make_video(num_frames=60, container="mpeg", codec="mpeg2video", max_b_frames=2, options=SHARP),
        [*range(60)],
    ),
    "flv": (lambda: make_video(num_frames=60, container="flv"), [*range(60)]),
    "raw H.264": (lambda: make_video(num_frames=60, container="h264"), [*range(60)]),
    "ivf": (lambda: make_video(num_frames=20, container="ivf", codec="libvpx-vp9", options=SHARP), [*range(20)]),
    "HEVC": (lambda: make_video(num_frames=30, codec="libx265"), [*range(30)]),
    "variable rate": (
        lambda: make_video(num_frames=30, pts=[i * i for i in range(30)], time_base=Fraction(1, 1000)),
        [*range(30)],
    ),
    "a still for twenty minutes": (
        lambda: make_video(
            num_frames=4, container="matroska", pts=[0, 40, 1_200_000, 1_200_040], time_base=Fraction(1, 1000)
        ),
        [*range(4)],
    ),
}


@pytest.mark.parametrize("is_kept", [True, False], ids=["packets kept", "read again"])
@pytest.mark.parametrize("kind", INTACT)
def test_an_intact_file_gives_every_frame_once_in_order_and_lacks_none(kind: str, is_kept: bool) -> None:
    make, expected = INTACT[kind]
    numbers, decoder = whole(make(), max_kept_bytes=1 << 30 if is_kept else 0)
    assert numbers == expected
    assert (decoder.info.num_frames_expected, decoder.info.num_frames_decoded) == (len(expected), len(expected))


@pytest.mark.parametrize("kind", ["ts that begins below zero", "two joined ts", "ts that jumps by ten hours"])
def test_the_duration_is_that_of_the_frames(kind: str) -> None:
    make, expected = INTACT[kind]
    assert float(VideoDecoder(make()).duration) == pytest.approx(len(expected) / 30, abs=0.05)


def test_joins_and_jumps_are_counted() -> None:
    counts = {kind: VideoDecoder(make()).info.num_time_jumps for kind, (make, _) in INTACT.items()}
    assert {kind: count for kind, count in counts.items() if count} == {
        "two joined ts": 1,
        "ts that jumps by ten hours": 1,
    }


CUT: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: make_video(num_frames=60, container_options={"movflags": "faststart"}),
    "fragmented mp4": lambda: make_video(num_frames=60, container_options=FRAGMENTED, gop_size=30),
    "mov": lambda: make_video(num_frames=60, container="mov", container_options={"movflags": "faststart"}),
    "mkv": lambda: make_video(num_frames=60, container="matroska"),
    "webm": lambda: make_video(num_frames=30, container="webm", codec="libvpx-vp9", options=SHARP),
    "avi": lambda: make_video(num_frames=60, container="avi", codec="ffv1"),
    "avi of H.264 with B-frames": lambda: make_video(num_frames=60, container="avi", **B_FRAMES),
    "avi of MPEG-4": lambda: make_video(num_frames=60, container="avi", codec="mpeg4", options=SHARP),
    "asf": lambda: make_video(num_frames=300, container="asf", codec="msmpeg4", options=SHARP),
    "mkv without DURATION": lambda: make_video(num_frames=60, container="matroska").replace(b"DURATION", b"LOCATION"),
    "HEVC": lambda: make_video(num_frames=60, codec="libx265", container_options={"movflags": "faststart"}),
    "variable rate": lambda: make_video(
        num_frames=30,
        pts=[i * i for i in range(30)],
        time_base=Fraction(1, 1000),
        container_options={"movflags": "faststart"},
    ),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_off_lacks_frames(kind: str) -> None:
    data = CUT[kind]()
    _, decoder = whole(truncated(data, 0.8))
    info = decoder.info
    assert info.num_frames_expected is not None
    assert info.num_frames_decoded is not None
    assert info.num_frames_decoded < info.num_frames_expected


def test_one_packet_without_time_stamp_does_not_make_a_stream_untimed() -> None:
    """A cut at an open GOP's key frame leaves packets before it that nothing can show."""
    made = make_video(
        num_frames=90,
        codec="libx265",
        container="matroska",
        fps=15,
        options={"x265-params": "open-gop=1:keyint=30:min-keyint=30:bframes=3:b-adapt=0:lossless=1:log-level=none"},
    )
    data = cut_at_key_frame(made, 1)
    with av.open(io.BytesIO(data)) as container:
        shown = frame_numbers(frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
    with av.open(io.BytesIO(data)) as container:
        assert any(packet.pts is None for packet in container.demux(video=0) if packet.size), "not the case in point"
    numbers, decoder = whole(data)
    assert numbers == shown
    assert float(decoder.duration) == pytest.approx(len(shown) / 15, abs=0.1)


def moving_picture(number: int, width: int, height: int) -> np.ndarray:
    """A smooth picture that moves sideways by 5 pixels a frame."""
    x, y = np.meshgrid(np.arange(width) + 5 * number, np.arange(height))
    brightness = 128 + 50 * np.sin(x / 7) + 50 * np.sin(y / 17)
    return np.stack([brightness, brightness, 0.8 * brightness], axis=-1).astype(np.uint8)


def test_a_frame_that_is_flagged_as_interlaced_is_resized_whole() -> None:
    """Measured against torchvision on the frame that PyAV makes RGB; field by field the mean error would be above 2."""
    data = make_video(
        num_frames=10,
        width=480,
        height=272,
        draw=moving_picture,
        options={"qp": "0", "flags": "+ildct+ilme"},
    )
    view = ViewConfig(num_frames=8, size=68, num_clips=1, span="full", short_side=68)
    decoder = VideoDecoder(data)
    (clip,) = decoder.sample(
        spread_spans(duration_seconds=decoder.duration, view=view), num_frames=10, convert=view_crops(view)
    )
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    for frame, picture in zip(frames, clip.pictures, strict=True):
        rgb = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        expected = resize(rgb, [68, 120], antialias=True)[:, :, 26:94].permute(1, 2, 0).numpy()
        assert np.abs(picture[0].astype(int) - expected).mean() < 1


@pytest.mark.parametrize(("rotation", "expected"), [(0, 64 / 45), (90, 45 / 64)])
def test_the_shape_of_pixels_is_told(rotation: int, expected: float) -> None:
    made = make_video(num_frames=3, rotation=rotation, sample_aspect_ratio=Fraction(64, 45))
    _, decoder = whole(made)
    assert decoder.info.sample_aspect_ratio == pytest.approx(expected)


@pytest.mark.parametrize(("rotation", "resized"), [(0, (68, 142)), (90, (142, 68))])
def test_pixels_are_squared_where_that_is_asked_for(rotation: int, resized: tuple[int, int]) -> None:
    """240 pixels of 32:27 are as wide as 284 square ones: at half the size, 142 × 68."""
    made = make_video(
        num_frames=4,
        width=240,
        height=136,
        draw=moving_picture,
        rotation=rotation,
        sample_aspect_ratio=Fraction(32, 27),
    )
    view = ViewConfig(num_frames=4, size=68, num_clips=1, num_crops=3, span="full", square_pixels=True)
    views_VTHWC, info = decode_views(made, view=view, limits=Limits())
    assert (info.width, info.height) == ((240, 136) if rotation == 0 else (136, 240)), "as they are stored"
    with av.open(io.BytesIO(made)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    spare = max(resized) - 68
    for t, frame in enumerate(frames):
        upright = torch.from_numpy(np.rot90(frame, rotation // 90).copy())
        shown = resize(upright.permute(2, 0, 1), list(resized), antialias=True).permute(1, 2, 0).numpy()
        for crop, at in enumerate((0, spare // 2, spare)):
            box = shown[:, at : at + 68] if rotation == 0 else shown[at : at + 68]
            assert np.abs(views_VTHWC[crop, t].astype(int) - box).mean() < 1


def test_pixels_of_training_clips_and_streams_are_squared_too() -> None:
    """48 × 96 pixels of 2:1 are a square picture; what is white in its middle covers a fourth of it."""

    def white_middle(number: int, width: int, height: int) -> np.ndarray:
        picture = np.zeros((height, width, 3), np.uint8)
        picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 255
        return picture

    made = make_video(num_frames=4, width=48, height=96, draw=white_middle, sample_aspect_ratio=Fraction(2))
    view = ViewConfig(num_frames=4, size=64, num_clips=1, span="full", square_pixels=True)
    draw = ClipDraw(crop=CropConfig(mode="random", min_short_side=64, max_short_side=64), seed=3)
    stream = dataclasses.replace(view, span="stream", stride=1)
    streamed = np.empty(stream.views_shape, np.uint8)
    next(stream_views(made, view=stream, limits=Limits(), out=streamed))
    for clip in (decode_views(made, view=view, limits=Limits(), draw=draw)[0][0], streamed[0]):
        assert (clip > 127).mean() == pytest.approx(0.25, abs=0.01)
        assert (clip[:, 18:46, 18:46] > 127).all()


def test_the_first_stream_is_taken_where_that_is_asked_for() -> None:
    made = make_video(num_frames=10, num_video_streams=2, container="matroska", default_stream=1)
    view = dataclasses.replace(WHOLE, size=64, num_frames=10)
    taken = {
        which: decode_views(made, view=dataclasses.replace(view, video_stream=which), limits=Limits())[0][0]
        for which in ("first", "default")
    }
    only_first = decode_views(make_video(num_frames=10, container="matroska"), view=view, limits=Limits())[0][0]
    assert np.array_equal(taken["first"], only_first)
    assert not np.array_equal(taken["default"], only_first)


def test_the_stream_that_the_container_marks_as_default_is_taken() -> None:
    """The second stream shows the same frames counted from 1000."""
    made = make_video(num_frames=10, num_video_streams=2, container="matroska", default_stream=1)
    assert whole(made)[0] == list(range(1000, 1010))
