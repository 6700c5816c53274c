"""Frames of a video for a page: decoded in the sandbox, and small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from vidray.errors import VideoError
from vidray.pages.blocks import Strip
from vidray.pages.words import seconds
from vidray.sandbox.sandbox import Sandbox
from vidray.sources.tar_shards import video_at
from vidray.storage.fetch import fetch
from vidray.types import WHOLE_FILE, ClipSpan, Limits, TimeRange, VideoInfo, ViewConfig
from vidray.video.sampling import pts_bounds, spans_within, spread_spans, subsample_indices

NUM_FRAMES = 6
_HEIGHT = 90
"""Of a frame in a page, in pixels."""
_WIDEST = 3.0
"""Greatest width of a frame by its height, or height by width: a picture of one line is no reason for a wide page."""
LIMITS = Limits(max_object_bytes=1024**3, decode_timeout_seconds=20.0, fetch_deadline_seconds=10.0)
"""Of a video that is shown: a report waits for nothing long."""
_WHOLE_VIDEO = ViewConfig(num_frames=1, size=1, span="full", num_clips=1)


def strip_sandbox(*, num_frames: int = NUM_FRAMES, size: int = 144, limits: Limits = LIMITS) -> Sandbox:
    """What decodes for `decode_strip`: the whole video and the whole picture, which is stretched to its shape again."""
    view = ViewConfig(num_frames=num_frames, size=size, span="full", num_clips=1, squeeze=True)
    return Sandbox(view=view, limits=limits)


def decode_strip(uri: str, etag: str | None, sandbox: Sandbox, *, time_range: TimeRange = WHOLE_FILE) -> Strip:
    """Frames of a row's whole video, or of a span of it; of one that is gone, changed or broken, why there are none.

    Raises:
        RunError: there can be no sandbox.
    """
    try:
        data = fetch(video_at(uri, etag=etag), limits=LIMITS)
        views_VTHWC, info = sandbox.decode(data, time_range=time_range)
    except VideoError as error:
        return Strip(problem=f"no frames: {error.status} ({error.message})")
    (span,) = clip_spans(info, time_range=time_range) or (None,)
    return make_strip(views_VTHWC[0], frame_times(span, info.fps, num_frames=NUM_FRAMES), aspect=shown_aspect(info))


def make_strip(frames_THWC: np.ndarray, times: Sequence[float], *, aspect: float = 1.0, height: int = _HEIGHT) -> Strip:
    """A strip of uint8 frames.

    Args:
        times: of each frame, in seconds; none where they are not known.
        aspect: width of a frame by its height, as a player shows it.
    """
    size = (max(1, round(height * aspect)), height)
    return Strip(frames=[jpeg(frame, size=size) for frame in frames_THWC], times=[seconds(time) for time in times])


def clip_spans(
    info: VideoInfo, *, view: ViewConfig = _WHOLE_VIDEO, time_range: TimeRange = WHOLE_FILE
) -> list[ClipSpan]:
    """When a video's clips are, in the file; [] if it does not say how long it is.

    Args:
        view: of the clips. Default: one clip, the whole video.
        time_range: what of the file counts as the video.
    """
    if info.duration_seconds is None:
        return []
    start, end = _exact(time_range.start_seconds), _exact(info.duration_seconds)
    if time_range.end_seconds is not None:
        end = min(_exact(time_range.end_seconds), end)
    return spans_within(spread_spans(duration_seconds=end - start, view=view), start) if end > start else []


def frame_times(span: ClipSpan | None, fps: float | None, *, num_frames: int) -> list[float]:
    """When the frames of a clip are shown that a model sees, in seconds, in a video with a constant frame rate; [] if
    that is not known."""
    if span is None or not fps:
        return []
    frame_seconds = 1 / Fraction(fps).limit_denominator(1001)
    first, stop = pts_bounds(span.start_seconds, span.end_seconds, time_base=frame_seconds, start_pts=0)
    numbers = first + subsample_indices(max(stop - first, 1), num_frames)
    return [float(number * frame_seconds) for number in numbers.tolist()]


def _exact(seconds: float) -> Fraction:
    """The fraction that was meant."""
    return Fraction(seconds).limit_denominator(1_000_000)


def jpeg(frame_HWC: np.ndarray, *, size: tuple[int, int]) -> str:
    """A data URI of a frame of (width, height) pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame_HWC).resize(size, Image.Resampling.LANCZOS).save(file, format="JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def shade(shares: np.ndarray) -> str:
    """A data URI of a matrix of shares from 0 to 1: a pixel for each, on a ground that shows through."""
    from PIL import Image

    rgba = np.empty((*shares.shape, 4), np.uint8)
    rgba[..., :3] = (70, 125, 225)
    rgba[..., 3] = (255 * np.clip(shares, 0, 1)).round()
    file = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def shown_aspect(info: VideoInfo) -> float:
    """Width of a picture by its height, as a player shows it, within bounds; 1 if that is not known."""
    if not info.width or not info.height:
        return 1.0
    aspect = info.width * (info.sample_aspect_ratio or 1.0) / info.height
    return min(max(aspect, 1 / _WIDEST), _WIDEST)
