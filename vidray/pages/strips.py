"""Frames of a video for a page: decoded in the sandbox, and small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from vidray.errors import VideoError
from vidray.pages.blocks import Strip
from vidray.pages.words import seconds
from vidray.sandbox.sandbox import Sandbox
from vidray.storage.fetch import fetch
from vidray.types import WHOLE_FILE, Limits, TimeRange, VideoInfo, VideoRef, ViewConfig

NUM_FRAMES = 6
_HEIGHT = 90
"""Of a frame in a page, in pixels."""
_WIDEST = 3.0
"""Greatest width of a frame by its height, or height by width: a picture of one line is no reason for a wide page."""
LIMITS = Limits(max_object_bytes=1024**3, decode_timeout_seconds=20.0, fetch_deadline_seconds=10.0)
"""Of a video that is shown: a report waits for nothing long."""
_VIEW = ViewConfig(num_frames=NUM_FRAMES, size=144, span="full", num_clips=1, squeeze=True)
"""The whole video and the whole picture, which `decode_strip` stretches to its shape again."""


def strip_sandbox() -> Sandbox:
    """What decodes for `decode_strip`."""
    return Sandbox(view=_VIEW, limits=LIMITS)


def decode_strip(video: VideoRef, sandbox: Sandbox, *, time_range: TimeRange = WHOLE_FILE) -> Strip:
    """Frames of a whole video, or of a span of it; of one that is gone, changed or broken, why there are none.

    Raises:
        RunError: there can be no sandbox.
    """
    try:
        views_VTHWC, info = sandbox.decode(fetch(video, limits=LIMITS), time_range=time_range)
    except VideoError as error:
        return Strip(problem=f"no frames: {error.status} ({error.message})")
    end = time_range.end_seconds if time_range.end_seconds is not None else info.duration_seconds
    times = frame_times(time_range.start_seconds, end, info.fps, num_frames=NUM_FRAMES)
    return make_strip(views_VTHWC[0], times, aspect=_aspect(info))


def make_strip(frames_THWC: np.ndarray, times: Sequence[float], *, aspect: float = 1.0, height: int = _HEIGHT) -> Strip:
    """A strip of uint8 frames.

    Args:
        times: of each frame, in seconds; none where they are not known.
        aspect: width of a frame by its height, as a player shows it.
    """
    size = (max(1, round(height * aspect)), height)
    return Strip(frames=[jpeg(frame, size=size) for frame in frames_THWC], times=[seconds(time) for time in times])


def frame_times(start: float, end: float | None, fps: float | None, *, num_frames: int) -> list[float]:
    """When evenly spaced frames of a span are shown, the first and the last of it included; [] if that is not known."""
    if end is None or not fps:
        return []
    return [float(time) for time in np.linspace(start, max(start, end - 1 / fps), num_frames)]


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


def _aspect(info: VideoInfo) -> float:
    if not info.width or not info.height:
        return 1.0
    aspect = info.width * (info.sample_aspect_ratio or 1.0) / info.height
    return min(max(aspect, 1 / _WIDEST), _WIDEST)
