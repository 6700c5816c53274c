"""From the bytes of a video to the views of a model: what the decoding child process calls. Imports numpy and av only.

A view is one crop of one clip. All views of a video are one uint8 array; normalising happens on the model's device.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from vidray.errors import VideoError
from vidray.types import WHOLE_FILE, ClipSpan, Limits, Status, TimeRange, VideoInfo, ViewConfig
from vidray.video.byte_sources import NeedsWholeFileError, SeekableFile
from vidray.video.decoder import VideoDecoder, drawn_crops, rgb_frame, view_crops
from vidray.video.frame_selector import Convert
from vidray.video.packet_index import choose, occupied
from vidray.video.pytorchvideo_clips import sample_clips
from vidray.video.random_crops import ClipDraw
from vidray.video.sampling import pts_bounds, random_span, segment_spans, spans_within, spread_spans, stream_chunks


def decode_views(
    data: bytes | memoryview | SeekableFile,
    *,
    view: ViewConfig,
    limits: Limits,
    out: np.ndarray | None = None,
    time_range: TimeRange = WHOLE_FILE,
    draw: ClipDraw | None = None,
) -> tuple[np.ndarray, VideoInfo]:
    """Decodes a video into its views.

    Args:
        data: the file's bytes; or something to read them from, of which as little as possible is read: not for the
            decoder of PyTorchVideo.
        out: where to write them, uint8 of ``view.views_shape``; a new array if None.
        time_range: what of the file counts as the video.
        draw: a clip for training: a random span and a random crop instead of the view config's (whose ``num_clips``
            and ``num_crops`` must be 1).

    Returns:
        (V, T, H, W, C) uint8 RGB with V = clips × crops, all crops of the first clip first; and what was found out.

    Raises:
        VideoError: TOO_LARGE, UNSUPPORTED, NO_VIDEO or CORRUPT.
        NeedsWholeFileError: the views can only be made from the file's bytes.
        ValueError: ``out`` has another shape or type, or several views of a random clip are asked for.
    """
    if draw is not None and view.num_views != 1:
        raise ValueError(f"a training clip is one view, got num_clips={view.num_clips}, num_crops={view.num_crops}")
    started = time.perf_counter()
    views_VTHWC = _output(view, out)
    which = "first" if view.decoder == "pytorchvideo" else view.video_stream
    by_index = not isinstance(data, bytes | memoryview)
    with VideoDecoder(data, limits, video_stream=which, by_index=by_index) as decoder:
        aspect = _aspect(decoder, view)
        if draw is None:
            convert: Convert = view_crops(view, pixel_aspect=aspect)
        else:
            convert = drawn_crops(view.size, draw, pixel_aspect=aspect)
        spans = _spans(decoder.duration, view, time_range, draw)
        if view.decoder == "pytorchvideo":
            if not isinstance(data, bytes | memoryview):
                raise NeedsWholeFileError("PyTorchVideo reads all of a file")
            clips = sample_clips(data, spans, num_frames=view.num_frames, convert=convert)
        else:
            clips = [clip.pictures for clip in decoder.sample(spans, num_frames=view.num_frames, convert=convert)]
        info = decoder.info
    for index, pictures in enumerate(clips):
        clip_views = views_VTHWC[index * view.num_crops : (index + 1) * view.num_crops]
        for t, crops in enumerate(pictures):
            clip_views[:, t] = crops
    return views_VTHWC, dataclasses.replace(info, decode_seconds=time.perf_counter() - started)


def views_of_frames(frames_THWC: np.ndarray, *, fps: Fraction, view: ViewConfig) -> np.ndarray:
    """The views of a video that is in memory already: those that a file of these frames would have.

    Args:
        frames_THWC: (T, H, W, 3) uint8 RGB.
        fps: frames per second.

    Returns:
        (V, T, H, W, C) uint8 of ``view.views_shape``.

    Raises:
        ValueError: the frames have another shape or type, or there are none.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or not frames_THWC.size:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames_THWC.dtype} {frames_THWC.shape}")
    if fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}")
    convert, numbers = view_crops(view), np.arange(len(frames_THWC))
    clips = []
    for span in spread_spans(duration_seconds=len(frames_THWC) / fps, view=view):
        bounds = pts_bounds(span.start_seconds, span.end_seconds, time_base=1 / fps, start_pts=0)
        chosen = choose(numbers, occupied(bounds, numbers), view.num_frames)
        clips.append(np.stack([convert(rgb_frame(frames_THWC[number])) for number in chosen], axis=1))
    return np.concatenate(clips)


def stream_views(
    file: bytes | SeekableFile,
    *,
    view: ViewConfig,
    limits: Limits,
    out: np.ndarray,
    time_range: TimeRange = WHOLE_FILE,
) -> Iterator[tuple[int, VideoInfo]]:
    """Decodes a video chunk by chunk (``sampling.stream_chunks``), each when it is asked for.

    Args:
        view: with ``span="stream"``, or ``"segments"``: then each window is a chunk.
        out: uint8 of ``view.views_shape``: every chunk is written to the start of its one clip.
        time_range: what of the file counts as the video.

    Yields:
        How many frames the chunk has, and what was found out so far. The last one has fewer than ``stream_chunks``
        says, perhaps none (of segments, none).

    Raises:
        VideoError: TOO_LARGE, UNSUPPORTED, NO_VIDEO or CORRUPT, with the first chunk; UNSUPPORTED also later.
    """
    frames_THWC = out[0]
    if view.span == "segments":
        yield from _segments(file, view=view, limits=limits, out_THWC=frames_THWC, time_range=time_range)
        return
    is_whole = time_range == WHOLE_FILE  # else it is found by the times of its packets
    with VideoDecoder(file, limits, video_stream=view.video_stream, is_streamed=is_whole) as decoder:
        convert = view_crops(view, pixel_aspect=_aspect(decoder, view))
        bounds = None if is_whole else _bounds(decoder.duration, time_range)
        pictures = decoder.stream(view, convert=convert, bounds=bounds)
        for chunk in stream_chunks(view):
            num_frames = 0
            for picture in itertools.islice(pictures, chunk.num_frames):
                frames_THWC[num_frames] = picture[0]
                num_frames += 1
            yield num_frames, decoder.info
            if num_frames < chunk.num_frames:
                return


def _segments(
    file: bytes | SeekableFile, *, view: ViewConfig, limits: Limits, out_THWC: np.ndarray, time_range: TimeRange
) -> Iterator[tuple[int, VideoInfo]]:
    with VideoDecoder(file, limits, video_stream=view.video_stream) as decoder:
        start, end = _bounds(decoder.duration, time_range)
        spans = spans_within(list(segment_spans(duration_seconds=end - start, view=view)), start)
        convert = view_crops(view, pixel_aspect=_aspect(decoder, view))
        for pictures in decoder.windows(spans, num_frames=view.num_frames, convert=convert):
            for t, crops in enumerate(pictures):
                out_THWC[t] = crops[0]
            yield view.num_frames, decoder.info
        yield 0, decoder.info


def _aspect(decoder: VideoDecoder, view: ViewConfig) -> float:
    """How much wider than high a pixel counts."""
    return decoder.pixel_aspect if view.square_pixels else 1.0


def _spans(duration: Fraction, view: ViewConfig, time_range: TimeRange, draw: ClipDraw | None) -> list[ClipSpan]:
    start, end = _bounds(duration, time_range)
    if draw is not None:
        return spans_within([random_span(duration_seconds=end - start, view=view, seed=draw.seed)], start)
    return spans_within(spread_spans(duration_seconds=end - start, view=view), start)


def _bounds(duration: Fraction, time_range: TimeRange) -> tuple[Fraction, Fraction]:
    """Where in a file of this duration the video starts and ends."""
    start = Fraction(time_range.start_seconds)
    end = duration if time_range.end_seconds is None else min(Fraction(time_range.end_seconds), duration)
    if end <= start:
        raise VideoError(
            Status.CORRUPT, f"the clip starts at {float(start):g} s, but the video ends at {float(duration):g} s"
        )
    return start, end


def _output(view: ViewConfig, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.empty(view.views_shape, dtype=np.uint8)
    if out.shape != view.views_shape or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 of shape {view.views_shape}, got {out.dtype} of {out.shape}")
    return out
