"""Which times and which frames of a video a model sees. Pure arithmetic: nothing here knows a codec.

A clip's frames are chosen in two steps, both as in PyTorchVideo 0.1.5:

1. every frame whose pts lies in the clip's half-open span (``EncodedVideo.get_clip``): ``pts_bounds``;
2. of these, ``num_frames`` evenly spaced ones, the first and the last included (``UniformTemporalSubsample``):
   ``subsample_indices``. Fewer frames than asked for are repeated.

A stream is another thing: the frame on screen every ``stride / 30`` seconds of the whole video, in chunks. Segments are
clips again, window after window over the whole video.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vidray.types import ClipSpan, ViewConfig


def spread_spans(*, duration_seconds: Fraction, view: ViewConfig) -> list[ClipSpan]:
    """The spans of a video's clips: ``view.num_clips`` of equal length, spread evenly over the whole video.

        |-- 0 --|
                  |-- 1 --|
                            |-- 2 --|
        |------------ video --------|

    The first starts at 0, the last ends with the video, one alone is centred. A clip is never longer than the video:
    where the video is shorter than ``view.clip_seconds``, and always with ``span="full"``, every clip is the whole
    video.

    Args:
        duration_seconds: from the start of the video to the end of its last frame, so that a span that ends there
            includes the last frame.

    Raises:
        ValueError: the duration is not positive.
    """
    duration = Fraction(duration_seconds)
    if duration <= 0:
        raise ValueError(f"a video's duration must be positive, got {duration} s")
    length = duration if view.span == "full" else min(view.clip_seconds, duration)
    slack = duration - length
    starts = [slack / 2] if view.num_clips == 1 else [slack * i / (view.num_clips - 1) for i in range(view.num_clips)]
    return [ClipSpan(index=i, start_seconds=s, end_seconds=s + length) for i, s in enumerate(starts)]


def segment_spans(*, duration_seconds: Fraction, view: ViewConfig) -> Iterator[ClipSpan]:
    """The windows of a video, from its start on, in order: every ``view.segment_step`` one of ``view.segment_length``.

    ::

        |-- 0 --|-- 1 --|-- 2 --|
                           |-- 3 --|      the last ends with the video, if that is not where a window ends anyway
        |---------- video ---------|      a video that is shorter than a window is one window

    Raises:
        ValueError: the duration is not positive.
    """
    duration = Fraction(duration_seconds)
    if duration <= 0:
        raise ValueError(f"a video's duration must be positive, got {duration} s")
    length = min(view.segment_length, duration)
    for index in itertools.count():
        start = index * view.segment_step
        if start + length >= duration:
            yield ClipSpan(index=index, start_seconds=duration - length, end_seconds=duration)
            return
        yield ClipSpan(index=index, start_seconds=start, end_seconds=start + length)


def most_frames(*, duration_seconds: float, view: ViewConfig) -> int:
    """How many pictures all chunks of a video of this length have together, at most."""
    if view.span == "segments":
        return view.num_frames * (math.ceil(duration_seconds / view.segment_step) + 1)
    return math.ceil(duration_seconds / view.frame_seconds)


def random_span(*, duration_seconds: Fraction, view: ViewConfig, seed: int) -> ClipSpan:
    """The span of a training clip: as long as the view's, starting anywhere; a shorter video whole.

        |------|--- clip ---|----|
        |-------- video ---------|

    Only ``seed`` decides where, so that it is the same on any machine.

    Raises:
        ValueError: the duration is not positive.
    """
    one = spread_spans(duration_seconds=duration_seconds, view=dataclasses.replace(view, num_clips=1))[0]
    slack = 2 * one.start_seconds  # a clip alone is centred
    start = slack * Fraction(random.Random(f"{seed}/span").random())
    return ClipSpan(index=0, start_seconds=start, end_seconds=start + one.end_seconds - one.start_seconds)


def spans_within(spans: list[ClipSpan], start_seconds: Fraction) -> list[ClipSpan]:
    """Spans that count from ``start_seconds`` of a file, as spans of the file."""
    return [
        ClipSpan(
            index=s.index, start_seconds=s.start_seconds + start_seconds, end_seconds=s.end_seconds + start_seconds
        )
        for s in spans
    ]


def pts_bounds(
    start_seconds: Fraction | float, end_seconds: Fraction | float, *, time_base: Fraction, start_pts: int
) -> tuple[int, int]:
    """The half-open range of pts of a span, as in PyTorchVideo's ``secs_to_pts(..., round_mode="ceil")``.

    Args:
        time_base: seconds per pts unit.
        start_pts: the pts that is second 0: the video stream's own start.
    """
    return math.ceil(start_seconds / time_base) + start_pts, math.ceil(end_seconds / time_base) + start_pts


def stream_pts(
    *, view: ViewConfig, start_seconds: Fraction, end_seconds: Fraction, time_base: Fraction, start_pts: int
) -> Iterator[int]:
    """The times at which a stream looks at the screen, in pts: at its start, ``stride / 30`` s later, and so on.

    Rounded up to the time base, as the starts of spans are: a time base of milliseconds cannot tell 66.7 from 67.
    """
    for number in itertools.count():
        seconds = start_seconds + number * view.frame_seconds
        if seconds >= end_seconds:
            return
        yield math.ceil(seconds / time_base) + start_pts


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A piece of a stream that the model sees at once."""

    num_frames: int
    end_seconds: Fraction | None = None
    """When the label so far is to be noted behind it, if it is: a multiple of the timeline's interval."""


def stream_chunks(view: ViewConfig) -> Iterator[Chunk]:
    """The chunks of a stream, without end: of ``num_frames`` frames, or such that they end at the timeline's times.

    ::

        frames      0  1  2  3  4  5  6  7  8  9  …
        timeline                S              2S       the frames before a time are in the chunks before it
        chunks      |-----|-----|--------|-----|        as even as they can be, here of at most 3
    """
    if view.timeline_seconds is None:
        yield from itertools.repeat(Chunk(num_frames=view.num_frames))
        return
    num_before = 0
    for number in itertools.count(1):
        end = number * view.timeline_interval
        num_frames = math.ceil(end / view.frame_seconds) - num_before
        num_before += num_frames
        num_chunks = -(-num_frames // view.num_frames)
        for index in range(num_chunks):
            length = num_frames * (index + 1) // num_chunks - num_frames * index // num_chunks
            yield Chunk(num_frames=length, end_seconds=end if index == num_chunks - 1 else None)


def subsample_indices(num_available: int, num_frames: int) -> np.ndarray:
    """``num_frames`` evenly spaced indices into ``num_available`` frames, first and last included, rounded down.

    Equal to PyTorchVideo's ``UniformTemporalSubsample``, which is ``torch.linspace(0, num_available - 1, num_frames)``
    in float32, truncated. PyTorch computes the first half from the start and the second half back from the end, each
    with one fused multiply-add; float64 holds that product and sum exactly enough to round once, to float32, at the
    end.

    Returns:
        (num_frames,) int64, not decreasing.

    Raises:
        ValueError: there is no frame, or none is asked for.
    """
    if num_available < 1 or num_frames < 1:
        raise ValueError(f"need at least one frame to choose from and one to choose, got {num_available}, {num_frames}")
    if num_frames == 1:
        return np.zeros(1, dtype=np.int64)
    last = np.float32(num_available - 1)
    step = np.float64(last / np.float32(num_frames - 1))
    position = np.arange(num_frames, dtype=np.float64)
    from_start = (step * position).astype(np.float32)
    from_end = (np.float64(last) - step * (num_frames - 1 - position)).astype(np.float32)
    points = np.where(position < num_frames // 2, from_start, from_end)
    return np.clip(points, 0, last).astype(np.int64)
