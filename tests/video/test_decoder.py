"""decoder.py against PyTorchVideo's EncodedVideo, on generated videos and on the sample videos."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from pytorchvideo.data.encoded_video_pyav import EncodedVideoPyAV

from tests.support.peers import pytorchvideo_of
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
from vidray.types import ClipSpan, Limits, Status, ViewConfig
from vidray.video.decoder import VideoDecoder, full_size, view_crops
from vidray.video.sampling import spread_spans

SAMPLES = os.environ.get("VIDRAY_SAMPLE_VIDEOS")
UNREADABLE = {"audio_only.mp3", "corrupted.mp4"}
NUM_FRAMES = 8

B_FRAMES = {"max_b_frames": 3, "options": {"preset": "medium", "qp": "10", "x264-params": "b-adapt=0:scenecut=0"}}
OPEN_GOP = {
    "max_b_frames": 2,
    "options": {"preset": "medium", "qp": "10", "x264-params": "b-adapt=0:scenecut=0:open-gop=1:keyint=9:min-keyint=9"},
}
SLIDES = {"pts": [0, 40, 50, 1500, 1510, 1520, 4000, 4040], "num_frames": 8, "time_base": Fraction(1, 1000)}
VARIABLE = {"pts": [i * i // 2 + 3 * i for i in range(60)], "num_frames": 60, "time_base": Fraction(1, 1000)}

KINDS: dict[str, dict] = {
    "30 fps": {"num_frames": 100},
    "24000/1001 fps": {"num_frames": 100, "fps": Fraction(24000, 1001)},
    "25 fps mkv without duration": {"num_frames": 90, "fps": 25, "container": "matroska"},
    "ffv1 in avi": {"num_frames": 60, "fps": 25, "container": "avi", "codec": "ffv1"},
    "B-frames": {"num_frames": 120, **B_FRAMES},
    "B-frames in mkv": {"num_frames": 120, "container": "matroska", **B_FRAMES},
    "B-frames in ts": {"num_frames": 120, "container": "mpegts", **B_FRAMES},
    "open GOP": {"num_frames": 120, **OPEN_GOP},
    "open GOP in mkv": {"num_frames": 120, "container": "matroska", **OPEN_GOP},
    "variable rate": VARIABLE,
    "variable rate mkv": {**VARIABLE, "container": "matroska"},
    "slides": SLIDES,
    "starts late": {"num_frames": 60, "start_pts": 45},
    "starts late mkv": {"num_frames": 60, "start_pts": 45, "container": "matroska"},
    "mpeg4 avi": {"num_frames": 100, "codec": "mpeg4", "container": "avi"},
    "mpeg4 avi with B-frames": {"num_frames": 100, "codec": "mpeg4", "container": "avi", "max_b_frames": 2},
    "mpeg2 in mpeg": {"num_frames": 60, "codec": "mpeg2video", "container": "mpeg", "max_b_frames": 2},
    "hevc with B-frames": {"num_frames": 60, "codec": "libx265", "max_b_frames": 3},
    "vp9 webm": {"num_frames": 60, "codec": "libvpx-vp9", "container": "webm", "width": 64, "height": 64},
    "flv": {"num_frames": 60, "container": "flv"},
    "10 bit": {"num_frames": 40, "pix_fmt": "yuv420p10le"},
    "odd size": {"num_frames": 40, "width": 61, "height": 47, "pix_fmt": "yuv444p"},
    "with sound": {"num_frames": 60, "with_audio": True},
    "two video streams": {"num_frames": 60, "num_video_streams": 2},
    "one frame": {"num_frames": 1},
    "two frames": {"num_frames": 2},
    "rotated": {"num_frames": 30, "rotation": 90, "container": "mov"},
}
SEEKS_PAST = {"B-frames in ts", "mpeg2 in mpeg"}
"""Containers without an index: FFmpeg's seek arrives behind the key frame, so that EncodedVideo misses frames."""
VIEWS = {
    "whole": ViewConfig(num_frames=NUM_FRAMES, size=32, span="full", num_clips=1),
    "one clip": ViewConfig(num_frames=NUM_FRAMES, size=32, num_clips=1),
    "far clips": ViewConfig(num_frames=NUM_FRAMES, size=32, num_clips=3, stride=1),
    "overlapping clips": ViewConfig(num_frames=NUM_FRAMES, size=32, num_clips=7, stride=5),
}


@pytest.fixture(scope="module")
def videos() -> Callable[[str], bytes]:
    made: dict[str, bytes] = {}
    return lambda kind: made[kind] if kind in made else made.setdefault(kind, make_video(**KINDS[kind]))


def peers_frames(video: EncodedVideoPyAV, span: ClipSpan, num_frames: int | None) -> np.ndarray | None:
    """(T, H, W, 3) uint8, as PyTorchVideo's EncodedVideo and UniformTemporalSubsample choose them."""
    frames = video.get_clip(span.start_seconds, span.end_seconds)["video"]
    if frames is None:
        return None
    if num_frames is not None:  # pytorchvideo.transforms does not import beside torchvision >= 0.17
        last = frames.shape[1] - 1
        frames = frames.index_select(1, torch.linspace(0, last, num_frames).clamp(0, last).long())
    return frames.permute(1, 2, 3, 0).to(torch.uint8).numpy()


def first_frame(data: bytes) -> av.VideoFrame:
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0))


def turned(frames: np.ndarray, data: bytes) -> np.ndarray:
    """Frames as displayed, turned by PyAV's own reading of the rotation."""
    return np.rot90(frames, first_frame(data).rotation // 90, axes=(1, 2))


def spans_of(data: bytes, view: ViewConfig) -> list[ClipSpan]:
    return spread_spans(duration_seconds=VideoDecoder(data).duration, view=view)


def ours(data: bytes, spans: list[ClipSpan], **options: int) -> list[np.ndarray]:
    clips = VideoDecoder(data, **options).sample(spans, num_frames=NUM_FRAMES, convert=full_size())
    return [np.stack(clip.pictures) for clip in clips]


def assert_same_frames(data: bytes, view: ViewConfig, video: EncodedVideoPyAV, **options: int) -> int:
    """Compares all clips in which PyTorchVideo finds a frame; returns how many."""
    spans = spans_of(data, view)
    num_compared = 0
    for span, frames in zip(spans, ours(data, spans, **options), strict=True):
        expected = peers_frames(video, span, NUM_FRAMES)
        if expected is not None:
            np.testing.assert_array_equal(frames, turned(expected, data))
            num_compared += 1
    return num_compared


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_frames_as_pytorchvideo(kind: str, view: str, videos: Callable[[str], bytes]) -> None:
    data = videos(kind)
    num_compared = assert_same_frames(data, VIEWS[view], pytorchvideo_of(data, seeks=kind not in SEEKS_PAST))
    assert num_compared == VIEWS[view].num_clips or kind == "slides"


@pytest.mark.parametrize("kind", ["B-frames", "open GOP in mkv", "mpeg4 avi with B-frames", "B-frames in ts"])
def test_same_frames_when_a_large_file_is_read_twice(kind: str, videos: Callable[[str], bytes]) -> None:
    data = videos(kind)
    video = pytorchvideo_of(data, seeks=kind not in SEEKS_PAST)
    assert assert_same_frames(data, VIEWS["far clips"], video, max_kept_bytes=0) == 3
    assert assert_same_frames(data, VIEWS["whole"], video, max_kept_bytes=0) == 1


def sample_videos() -> list[Path]:
    return sorted(path for path in Path(SAMPLES or "/nowhere").glob("*/*.*") if path.name not in UNREADABLE)


@pytest.mark.skipif(SAMPLES is None, reason="VIDRAY_SAMPLE_VIDEOS is not set")
@pytest.mark.parametrize("path", sample_videos(), ids=lambda path: path.name)
def test_same_frames_as_pytorchvideo_on_sample_videos(path: Path) -> None:
    data = path.read_bytes()
    video = pytorchvideo_of(data)
    for view in ("whole", "far clips"):
        assert assert_same_frames(data, VIEWS[view], video) > 0


@pytest.mark.parametrize("kind", ["B-frames", "rotated", "25 fps mkv without duration"])
def test_get_clip_is_encoded_videos(kind: str, videos: Callable[[str], bytes]) -> None:
    data = videos(kind)
    decoder, video = VideoDecoder(data), pytorchvideo_of(data)
    for start, end in [(0, Fraction(1, 3)), (0.25, 0.9), (0, 100), (Fraction(1, 7), Fraction(2, 7))]:
        frames = decoder.get_clip(start, end)["video"]
        expected = video.get_clip(start, end)["video"]
        assert frames.dtype == expected.dtype == torch.float32
        turns = first_frame(data).rotation // 90
        assert torch.equal(frames, torch.rot90(expected, turns, dims=(2, 3)))
    assert decoder.get_clip(500, 501) == {"video": None, "audio": None} == video.get_clip(500, 501)


def test_last_clip_holds_the_last_frame_although_the_header_ends_before_it() -> None:
    data = make_video(num_frames=50, codec="mpeg4", container="avi", max_b_frames=2, fps=25, options={"qscale": "2"})
    assert pytorchvideo_of(data).duration == 2  # but the frames' pts are 1 to 50
    decoder = VideoDecoder(data)
    assert decoder.duration == Fraction(51, 25)
    clips = decoder.sample(spans_of(data, VIEWS["far clips"]), num_frames=NUM_FRAMES, convert=full_size())
    assert frame_number(clips[0].pictures[0]) == 0
    assert frame_number(clips[-1].pictures[-1]) == 49


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi", "flv"])
def test_first_and_last_frame_are_included(container: str) -> None:
    codec = "ffv1" if container == "avi" else "libx264"
    data = make_video(num_frames=90, container=container, codec=codec)
    clips = VideoDecoder(data).sample(spans_of(data, VIEWS["far clips"]), num_frames=NUM_FRAMES, convert=full_size())
    assert frame_numbers(clips[0].pictures) == list(range(NUM_FRAMES))
    # Where pts are whole milliseconds, the frame that starts with the clip may be rounded to just before it.
    assert frame_numbers(clips[-1].pictures)[1:] == list(range(91 - NUM_FRAMES, 90))


def test_short_video_repeats_frames() -> None:
    data = make_video(num_frames=3)
    (clip,) = VideoDecoder(data).sample(spans_of(data, VIEWS["one clip"]), num_frames=8, convert=full_size())
    assert frame_numbers(clip.pictures) == [0, 0, 0, 0, 1, 1, 1, 2]


def test_span_without_a_frame_shows_the_one_on_screen() -> None:
    data = make_video(**SLIDES)
    decoder = VideoDecoder(data)
    spans = [ClipSpan(index=0, start_seconds=Fraction(s), end_seconds=Fraction(s) + Fraction(1, 2)) for s in (3, 9)]
    clips = decoder.sample(spans, num_frames=2, convert=full_size())
    assert [frame_numbers(clip.pictures) for clip in clips] == [[5, 5], [7, 7]]


def test_raw_stream_without_time_stamps_is_counted() -> None:
    data = make_video(num_frames=50, container="h264", **B_FRAMES)
    decoder = VideoDecoder(data)
    assert decoder.duration == 2  # FFmpeg assumes 25 frames per second
    clips = decoder.sample(spans_of(data, VIEWS["far clips"]), num_frames=8, convert=full_size())
    assert [frame_number(clip.pictures[0]) for clip in clips] == [0, 22, 44]
    assert frame_number(clips[-1].pictures[-1]) == 49


def test_skipping_decodes_fewer_frames_and_gives_the_same(
    videos: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = videos("B-frames")
    spans = spans_of(data, VIEWS["whole"])
    num_decoded = []

    def counting(decoder: VideoDecoder, *args: object) -> object:
        frames = list(decoded(decoder, *args))
        num_decoded.append(len(frames))
        return iter(frames)

    decoded = VideoDecoder.decoded
    monkeypatch.setattr(VideoDecoder, "decoded", counting)
    skipping = ours(data, spans)
    monkeypatch.setattr(VideoDecoder, "may_skip", False)
    np.testing.assert_array_equal(skipping, ours(data, spans))
    assert num_decoded[0] < num_decoded[1] == 120


def test_key_frames_between_far_spans_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_video(num_frames=600, gop_size=10)
    decoder = VideoDecoder(data)
    pts_seen = []
    decoded = VideoDecoder.decoded
    monkeypatch.setattr(
        VideoDecoder, "decoded", lambda *args: (pts_seen.append(item[1]) or item for item in decoded(*args))
    )
    decoder.sample(spans_of(data, VIEWS["far clips"]), num_frames=8, convert=full_size())
    assert len(pts_seen) < 80


def test_truncated_file_gives_what_is_there_and_says_so() -> None:
    whole = make_video(num_frames=100, container_options=FASTSTART)
    view = VIEWS["whole"]
    decoder = VideoDecoder(truncated(whole, 0.6))
    (clip,) = decoder.sample(
        spread_spans(duration_seconds=decoder.duration, view=view), num_frames=4, convert=full_size()
    )
    numbers = frame_numbers(clip.pictures)
    assert numbers[0] == 0
    assert 30 < numbers[-1] < 70
    assert decoder.info.num_frames_expected == 100
    assert numbers[-1] + 1 == decoder.info.num_frames_decoded


@pytest.mark.parametrize("container", ["matroska", "avi"])
def test_truncation_is_seen_in_other_containers(container: str) -> None:
    data = truncated(make_video(num_frames=100, container=container, codec="ffv1"), 0.5)
    decoder = VideoDecoder(data)
    decoder.sample(spans_of(data, VIEWS["whole"]), num_frames=4, convert=full_size())
    assert decoder.info.num_frames_expected == 100
    assert decoder.info.num_frames_decoded < 60


def damaged(data: bytes, *, seed: int) -> bytes:
    """A good mp4 with eight bytes of its pictures changed."""
    random = np.random.default_rng(seed)
    start = data.index(b"mdat") + 4
    broken = bytearray(data)
    for position in random.integers(start + 200, len(data), 8):
        broken[position] ^= int(random.integers(1, 256))
    return bytes(broken)


def test_damaged_frames_are_left_out_and_counted() -> None:
    data = make_video(num_frames=60, options={"preset": "medium"}, container_options=FASTSTART)
    num_decoded = []
    for seed in range(8):
        decoder = VideoDecoder(damaged(data, seed=seed))
        (clip,) = decoder.sample(spans_of(data, VIEWS["whole"]), num_frames=8, convert=full_size())
        assert len(clip.pictures) == 8
        assert decoder.info.num_frames_expected == 60
        num_decoded.append(decoder.info.num_frames_decoded)
    assert min(num_decoded) < 60


def test_size_may_change_midway() -> None:
    data = resized_midway(sizes=((64, 48), (96, 32), (48, 64)), num_frames=30)
    view = ViewConfig(num_frames=6, size=32, span="full", num_clips=1)
    (clip,) = VideoDecoder(data).sample(spans_of(data, view), num_frames=6, convert=full_size())
    assert [picture.shape[:2] for picture in clip.pictures] == [(48, 64)] * 2 + [(32, 96)] * 2 + [(64, 48)] * 2
    assert frame_numbers(clip.pictures) == [0, 5, 11, 17, 23, 29]
    (crops,) = VideoDecoder(data).sample(spans_of(data, view), num_frames=6, convert=view_crops(view))
    assert {picture.shape for picture in crops.pictures} == {(1, 32, 32, 3)}


def test_first_video_stream_is_taken() -> None:
    data = make_video(num_frames=10, num_video_streams=2)
    (clip,) = VideoDecoder(data).sample(spans_of(data, VIEWS["whole"]), num_frames=10, convert=full_size())
    assert frame_numbers(clip.pictures) == list(range(10))


def test_info_tells_what_the_file_is(videos: Callable[[str], bytes]) -> None:
    decoder = VideoDecoder(videos("rotated"))
    decoder.sample(spans_of(videos("rotated"), VIEWS["whole"]), num_frames=4, convert=full_size())
    info = decoder.info
    assert (info.width, info.height, info.fps, info.codec) == (48, 64, 30.0, "h264")
    assert (info.num_frames_expected, info.num_frames_decoded, info.duration_seconds) == (30, 30, 1.0)


def cover_only() -> bytes:
    """A sound with a cover picture, which FFmpeg shows as a video stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        sound = output.add_stream("aac", rate=48000)
        output.add_attachment("cover.png", "image/png", png())
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return file.getvalue()


def png() -> bytes:
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 8, 8, "rgb24", Fraction(1, 25)
    return b"".join(bytes(p) for p in encoder.encode(av.VideoFrame(8, 8, "rgb24")))


PLAYLIST = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n"
SESSION = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
REFUSED: dict[str, tuple[Callable[[], bytes], Status]] = {
    "empty": (lambda: b"", Status.CORRUPT),
    "zeros": (lambda: bytes(10_000), Status.CORRUPT),
    "noise": (lambda: np.random.default_rng(0).bytes(20_000), Status.CORRUPT),
    "no index": (lambda: truncated(make_video(), 0.5), Status.CORRUPT),
    "no picture data": (lambda: blank(make_video(container_options=FASTSTART)), Status.CORRUPT),
    "playlist": (lambda: PLAYLIST, Status.UNSUPPORTED),
    "concat script": (lambda: b"ffconcat version 1.0\nfile 'a.mp4'\n", Status.UNSUPPORTED),
    "session description": (lambda: SESSION, Status.UNSUPPORTED),
    "unknown codec": (lambda: make_video().replace(b"avc1", b"qqqq"), Status.UNSUPPORTED),
    "sound alone": (audio_only, Status.NO_VIDEO),
    "sound with a cover": (cover_only, Status.NO_VIDEO),
}


def blank(data: bytes) -> bytes:
    """An mp4 whose pictures are all zeros."""
    start = data.index(b"mdat") + 4
    return data[:start] + bytes(len(data) - start)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_has_a_status(name: str) -> None:
    make, status = REFUSED[name]
    with pytest.raises(VideoError) as caught:  # noqa: PT012 - either opening or decoding refuses
        decoder = VideoDecoder(make())
        span = ClipSpan(index=0, start_seconds=Fraction(0), end_seconds=decoder.duration)
        decoder.sample([span], num_frames=4, convert=full_size())
    assert caught.value.status is status


@pytest.mark.parametrize(
    "limits",
    [Limits(max_pixels=64 * 48 - 1), Limits(max_frames=29), Limits(max_duration_seconds=0.9)],
    ids=["pixels", "frames", "duration"],
)
def test_limits_are_kept(limits: Limits) -> None:
    data = make_video(num_frames=30)
    with pytest.raises(VideoError) as caught:
        VideoDecoder(data, limits)
    assert caught.value.status is Status.TOO_LARGE


def test_frames_that_grow_beyond_the_limit_are_not_decoded() -> None:
    data = resized_midway(sizes=((64, 48), (128, 128)))
    decoder = VideoDecoder(data, Limits(max_pixels=5000))
    (clip,) = decoder.sample(spans_of(data, VIEWS["whole"]), num_frames=4, convert=full_size())
    assert max(frame_numbers(clip.pictures)) == 9
    assert (decoder.info.num_frames_expected, decoder.info.num_frames_decoded) == (20, 10)
