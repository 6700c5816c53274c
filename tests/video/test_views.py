"""views.py: a video's bytes become one array of views.

Bounds on pixels are in levels of 255. FFmpeg rounds some pixels otherwise where a processor lacks its extensions, and
stays within them.
"""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from tests.support.videos import frame_numbers, make_video
from vidray.errors import VideoError
from vidray.types import Limits, Status, TimeRange, ViewConfig
from vidray.video.frame_converters import FullSize, Resizer
from vidray.video.random_crops import ClipDraw, CropConfig, draw_box
from vidray.video.sampling import random_span
from vidray.video.views import decode_views

SAMPLES = os.environ.get("VIDRAY_SAMPLE_VIDEOS")


def side_by_side(number: int, width: int, height: int) -> np.ndarray:
    """A ramp of red from left to right, of green from top to bottom; blue counts the frames."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, np.full((height, width), 4 * number)], axis=2).round().astype(np.uint8)


def views_of(data: bytes, **view: object) -> np.ndarray:
    config = ViewConfig(**{"num_frames": 4, "size": 32, "num_clips": 1, **view})  # type: ignore[arg-type]
    views, _ = decode_views(data, view=config, limits=Limits())
    assert views.shape == config.views_shape
    assert views.dtype == np.uint8
    assert views.flags.c_contiguous
    return views


def torchvisions(data: bytes, indices: list[int], *, short_side: int, size: int, antialias: bool = True) -> np.ndarray:
    """(T, size, size, 3) uint8: to_rgb at full size, then bilinear resize and centre crop."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    images = torch.from_numpy(np.stack([frames[i] for i in indices])).permute(0, 3, 1, 2)
    bilinear = functional.InterpolationMode.BILINEAR
    images = functional.resize(images, [short_side], interpolation=bilinear, antialias=antialias)
    return functional.center_crop(images, [size, size]).permute(0, 2, 3, 1).numpy()


def test_views_are_ordered_by_clip_then_crop_then_time() -> None:
    data = make_video(num_frames=60, width=96, height=48, draw=side_by_side, pix_fmt="yuv444p")
    views = views_of(data, num_clips=2, num_crops=3, stride=1).astype(int)
    red, blue = views[..., 0].mean(axis=(2, 3)), views[..., 2].mean(axis=(2, 3))
    assert (np.diff(red[:3, 0]) > 50).all(), "left, centre, right"
    np.testing.assert_allclose(red[:3], red[3:], atol=2)
    np.testing.assert_allclose(blue[0], [0, 4, 8, 12], atol=2)
    np.testing.assert_allclose(blue[5], [224, 228, 232, 236], atol=2)


def test_frames_can_be_read_off_resized_views() -> None:
    data = make_video(num_frames=40, width=64, height=64)
    assert frame_numbers(views_of(data, span="full")[0]) == [0, 13, 26, 39]


def test_three_crops_of_a_high_video_go_down() -> None:
    data = make_video(num_frames=4, width=48, height=96, draw=side_by_side, pix_fmt="yuv444p")
    green = views_of(data, num_crops=3)[..., 1].mean(axis=(1, 2, 3))
    assert (np.diff(green) > 50).all()


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_honoured(rotation: int) -> None:
    upright = make_video(num_frames=4, width=96, height=48, draw=side_by_side, pix_fmt="yuv444p", container="mov")
    turned = make_video(
        num_frames=4, width=96, height=48, draw=side_by_side, pix_fmt="yuv444p", container="mov", rotation=rotation
    )
    expected = np.rot90(views_of(upright, num_crops=3), rotation // 90, axes=(2, 3))
    # Turned left or by half, what was the left crop is the last one.
    expected = expected if rotation == -90 else expected[::-1]
    np.testing.assert_array_equal(views_of(turned, num_crops=3), expected)


def striped(number: int, width: int, height: int) -> np.ndarray:
    """The ramps, with grey stripes three pixels apart that alias when a resize leaves pixels out."""
    stripes = 40 * (np.arange(width) % 3 == 0)[None, :, None] * (np.arange(height) % 3 == 0)[:, None, None]
    return (side_by_side(number, width, height) * 0.8 + stripes).astype(np.uint8)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize(("width", "height"), [(320, 240), (240, 426), (640, 362), (100, 80)])
def test_resize_is_near_torchvisions_antialiased_bilinear(pix_fmt: str, width: int, height: int) -> None:
    data = make_video(num_frames=2, width=width, height=height, draw=striped, pix_fmt=pix_fmt)
    views = views_of(data, num_frames=2, span="full", size=112).astype(int)
    expected = torchvisions(data, [0, 1], short_side=112, size=112)
    error = views[0] - expected
    aliased = torchvisions(data, [0, 1], short_side=112, size=112, antialias=False).astype(int)
    assert abs(error).mean() < 2
    assert abs(error.mean()) < 1.5
    if min(width, height) > 224:
        assert abs(error).mean() < abs(aliased - expected).mean() / 2


@pytest.mark.skipif(SAMPLES is None, reason="VIDRAY_SAMPLE_VIDEOS is not set")
def test_resize_of_real_frames_is_near_torchvisions() -> None:
    for path in sorted(Path(SAMPLES or "").glob("ucf101/*BasketballDunk*.avi")):
        data = path.read_bytes()
        views = views_of(data, size=224, num_frames=8, span="full").astype(int)
        error = views[0] - torchvisions(data, [0, 17, 35, 53, 70, 88, 106, 124], short_side=224, size=224)
        assert abs(error).mean() < 1
        assert abs(error.mean()) < 0.25


@pytest.mark.parametrize(("width", "height"), [(2000, 2), (2, 2000), (4096, 16), (2048, 64)])
def test_long_pictures_are_cut_where_a_whole_resize_would_cut_them(width: int, height: int) -> None:
    data = make_video(num_frames=2, width=width, height=height, draw=side_by_side, pix_fmt="yuv444p")
    views = views_of(data, num_crops=3)
    ramp = views[..., 0 if width > height else 1].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(ramp, [0, 127.5, 255], atol=128 * min(width, height) / max(width, height) + 4)


def test_one_pixel_video() -> None:
    data = make_video(
        num_frames=2, width=1, height=1, pix_fmt="yuv444p", draw=lambda *_: np.full((1, 1, 3), 200, np.uint8)
    )
    np.testing.assert_allclose(views_of(data).astype(int), 200, atol=2)


def test_short_side_may_be_larger_than_the_crop() -> None:
    data = make_video(num_frames=4, width=96, height=96, draw=side_by_side, pix_fmt="yuv444p")
    whole, part = views_of(data)[..., 0], views_of(data, short_side=64)[..., 0]
    assert int(whole.min()) < 10
    assert 50 < int(part.min()) < int(part.max()) < 205


def test_views_are_written_where_asked() -> None:
    config = ViewConfig(num_frames=4, size=32, num_clips=2)
    data = make_video(num_frames=30)
    out = np.zeros(config.views_shape, np.uint8)
    views, info = decode_views(memoryview(data), view=config, limits=Limits(), out=out)
    assert views is out
    np.testing.assert_array_equal(out, decode_views(data, view=config, limits=Limits())[0])
    assert info.decode_seconds is not None
    assert info.decode_seconds > 0


def test_output_must_have_the_right_shape() -> None:
    with pytest.raises(ValueError, match="out must be uint8"):
        decode_views(make_video(), view=ViewConfig(num_frames=4, size=32), limits=Limits(), out=np.zeros(3, np.uint8))


def test_importing_views_stays_light() -> None:
    code = (
        "import sys, vidray.video.views; print(sorted({'torch', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- training clips, and parts of files -------------------------------------------------------------------------------

RANDOM = CropConfig(mode="random", min_short_side=36, max_short_side=48)
RESIZED = CropConfig(mode="resized", min_short_side=48, max_short_side=48)


def training_clip(data: bytes, crop: CropConfig, seed: int, **view: object) -> np.ndarray:
    """(T, H, W, C) of a training clip."""
    config = ViewConfig(**{"num_frames": 4, "size": 32, "num_clips": 1, "stride": 1, **view})  # type: ignore[arg-type]
    return decode_views(data, view=config, limits=Limits(), draw=ClipDraw(crop=crop, seed=seed))[0][0]


@pytest.mark.parametrize("crop", [RANDOM, RESIZED], ids=["random", "resized"])
def test_a_training_clip_shows_the_box_that_its_seed_draws_in_every_frame(crop: CropConfig) -> None:
    data = make_video(num_frames=60, width=96, height=64, draw=side_by_side, pix_fmt="yuv444p")
    for seed in range(8):
        frames = training_clip(data, crop, seed).astype(float)
        box = draw_box(64, 96, size=32, draw=ClipDraw(crop=crop, seed=seed))
        rows, columns = (
            (np.arange(32) + 0.5) / 32 * box.height + box.top,
            (np.arange(32) + 0.5) / 32 * box.width + box.left,
        )
        red, green = columns / box.picture[1] * 255, rows / box.picture[0] * 255
        for frame in frames:
            np.testing.assert_allclose(frame[..., 0].mean(axis=0)[2:-2], red[2:-2], atol=4)
            np.testing.assert_allclose(frame[..., 1].mean(axis=1)[2:-2], green[2:-2], atol=4)


def test_a_training_clip_shows_the_frames_of_its_random_span() -> None:
    data = make_video(num_frames=60, width=64, height=64, draw=side_by_side, pix_fmt="yuv444p")
    view = ViewConfig(num_frames=4, size=32, stride=2)
    for seed in range(8):
        frames = training_clip(data, RANDOM, seed, stride=2)
        span = random_span(duration_seconds=Fraction(2), view=view, seed=seed)
        first = math.ceil(span.start_seconds * 30)
        last = math.ceil(span.end_seconds * 30) - 1
        np.testing.assert_allclose(frames[..., 2].mean(axis=(1, 2))[[0, -1]], [4 * first, 4 * last], atol=2)


def test_a_training_clip_converts_nothing_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    resized = Resizer.resized

    def watched(self: Resizer, frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
        sizes.append((height, width))
        return resized(self, frame, height, width)

    monkeypatch.setattr(Resizer, "resized", watched)
    monkeypatch.setattr(FullSize, "__call__", lambda *_: pytest.fail("a frame was converted at full size"))
    training_clip(make_video(num_frames=30, width=640, height=480), RANDOM, seed=1)
    assert len(sizes) == 4, "only the frames that are kept"
    assert max(max(size) for size in sizes) <= 48 * 640 // 480


@pytest.mark.parametrize("crop", [RANDOM, RESIZED], ids=["random", "resized"])
@pytest.mark.parametrize(("width", "height"), [(2400, 16), (16, 2400), (17, 16)])
def test_odd_shapes_give_training_clips_too(crop: CropConfig, width: int, height: int) -> None:
    assert training_clip(make_video(num_frames=8, width=width, height=height, pix_fmt="yuv444p"), crop, 3).shape == (
        *(4, 32, 32, 3),
    )


def test_a_rotated_video_is_cropped_as_displayed() -> None:
    upright = make_video(num_frames=8, width=96, height=48, draw=side_by_side, pix_fmt="yuv444p", container="mov")
    turned = make_video(
        num_frames=8, width=96, height=48, draw=side_by_side, pix_fmt="yuv444p", container="mov", rotation=180
    )
    box = draw_box(48, 96, size=32, draw=ClipDraw(crop=RANDOM, seed=5))
    frames = training_clip(turned, RANDOM, 5)[..., 0].astype(float)
    columns = box.picture[1] - (np.arange(32) + 0.5 + box.left)
    np.testing.assert_allclose(frames[0].mean(axis=0), columns / box.picture[1] * 255, atol=5)
    assert not np.array_equal(training_clip(upright, RANDOM, 5), training_clip(turned, RANDOM, 5))


def test_several_views_of_a_training_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clips=2"):
        training_clip(make_video(num_frames=8), RANDOM, 1, num_clips=2)


def blue_of(time_range: TimeRange, **view: object) -> list[int]:
    """Frame numbers that the views of a part of a 60-frame, 2 s video show."""
    data = make_video(num_frames=60, width=64, height=64, draw=side_by_side, pix_fmt="yuv444p")
    config = ViewConfig(**{"num_frames": 4, "size": 32, "num_clips": 1, **view})  # type: ignore[arg-type]
    views, _ = decode_views(data, view=config, limits=Limits(), time_range=time_range)
    return (views[..., 2].mean(axis=(2, 3)) / 4).round().astype(int).reshape(-1).tolist()


def test_views_of_a_part_stay_within_it() -> None:
    part = TimeRange(start_seconds=0.5, end_seconds=1.0)  # frames 15 to 29
    assert blue_of(part, span="full") == [15, 19, 24, 29]
    assert blue_of(part, stride=1, num_clips=2) == [15, 16, 17, 18, 26, 27, 28, 29]
    assert blue_of(TimeRange(start_seconds=1.5, end_seconds=99.0), span="full")[-1] == 59
    assert blue_of(TimeRange(), span="full") == [0, 19, 39, 59]


def test_a_part_beyond_the_end_is_a_bad_video() -> None:
    with pytest.raises(VideoError, match=r"the clip starts at 2\.5 s, but the video ends at 2 s") as caught:
        blue_of(TimeRange(start_seconds=2.5, end_seconds=3.0))
    assert caught.value.status is Status.CORRUPT


def test_a_random_span_stays_within_a_part() -> None:
    data = make_video(num_frames=60, width=64, height=64, draw=side_by_side, pix_fmt="yuv444p")
    view = ViewConfig(num_frames=4, size=32, stride=1, num_clips=1)
    for seed in range(6):
        views, _ = decode_views(
            data,
            view=view,
            limits=Limits(),
            time_range=TimeRange(start_seconds=0.5, end_seconds=1.0),
            draw=ClipDraw(crop=RANDOM, seed=seed),
        )
        numbers = (views[0, ..., 2].mean(axis=(1, 2)) / 4).round()
        assert numbers.min() >= 15
        assert numbers.max() <= 29
