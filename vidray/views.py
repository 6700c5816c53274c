"""From the bytes of a video to the views of a model: what the decoding child process calls. Imports numpy and av only.

A view is one crop of one clip. All views of a video are one uint8 array; normalising happens on the model's device.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from vidray.decode import VideoDecoder, view_crops
from vidray.sampling import spread_spans
from vidray.types import Limits, VideoInfo, ViewConfig


def decode_views(
    data: bytes | memoryview, *, view: ViewConfig, limits: Limits, out: np.ndarray | None = None
) -> tuple[np.ndarray, VideoInfo]:
    """Decodes a video into its views.

    Args:
        out: where to write them, uint8 of ``view.views_shape``; a new array if None.

    Returns:
        (V, T, H, W, C) uint8 RGB with V = clips × crops, all crops of the first clip first; and what was found out.

    Raises:
        VideoError: TOO_LARGE, UNSUPPORTED, NO_VIDEO or CORRUPT.
        ValueError: ``out`` has another shape or type.
    """
    started = time.perf_counter()
    views_VTHWC = _output(view, out)
    with VideoDecoder(data, limits) as decoder:
        spans = spread_spans(duration_seconds=decoder.duration, view=view)
        clips = decoder.sample(spans, num_frames=view.num_frames, convert=view_crops(view))
        info = decoder.info
    for index, clip in enumerate(clips):
        clip_views = views_VTHWC[index * view.num_crops : (index + 1) * view.num_crops]
        for t, crops in enumerate(clip.pictures):
            clip_views[:, t] = crops
    return views_VTHWC, dataclasses.replace(info, decode_seconds=time.perf_counter() - started)


def _output(view: ViewConfig, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.empty(view.views_shape, dtype=np.uint8)
    if out.shape != view.views_shape or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 of shape {view.views_shape}, got {out.dtype} of {out.shape}")
    return out
