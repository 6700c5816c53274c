"""Clips as PyTorchVideo itself decodes them: ``--decoder pytorchvideo``.

``EncodedVideo`` decodes every frame of a span at full size, where `vidray.video.decoder` finds the same frames for a
fraction of the time. It is here to compare with, and for whoever wants that very library. A long span of large frames
meets the sandbox's memory limit, which PyTorchVideo reports as a video that does not decode.
"""

from __future__ import annotations

import ctypes
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidray.errors import VideoError
from vidray.types import ClipSpan, Status
from vidray.video.decoder import rgb_frame
from vidray.video.frame_converters import Picture
from vidray.video.frame_selector import Convert
from vidray.video.sampling import subsample_indices


@functools.cache
def load() -> Any:
    """PyTorchVideo's class. Slow the first time: it imports torch, which must happen before a sandbox is closed."""
    import torch
    from pytorchvideo.data.encoded_video import select_video_class

    torch.set_num_threads(1)
    # PyTorchVideo asks for as many threads as there are CPUs, and none can be started in a sandbox.
    maps = Path("/proc/self/maps").read_text().splitlines()
    ctypes.CDLL(next(line.split(maxsplit=5)[5] for line in maps if "libavutil" in line)).av_cpu_force_count(1)
    return select_video_class("pyav")


def sample_clips(
    data: bytes | memoryview, spans: Sequence[ClipSpan], *, num_frames: int, convert: Convert
) -> list[list[Picture]]:
    """For each span the frames of ``EncodedVideo.get_clip`` that ``UniformTemporalSubsample`` takes, converted.

    Raises:
        VideoError: CORRUPT if PyTorchVideo cannot open the file, or finds no frame in a span.
    """
    video_class = load()
    try:
        video = video_class(io.BytesIO(data), decode_audio=False)
    except RuntimeError as error:
        raise VideoError(Status.CORRUPT, f"PyTorchVideo: {error}") from error
    try:
        return [_pictures(video, span, num_frames, convert) for span in spans]
    finally:
        video.close()


def _pictures(video: Any, span: ClipSpan, num_frames: int, convert: Convert) -> list[Picture]:
    frames_CTHW = video.get_clip(span.start_seconds, span.end_seconds)["video"]
    if frames_CTHW is None:
        bounds = f"{float(span.start_seconds):g} and {float(span.end_seconds):g} s"
        raise VideoError(Status.CORRUPT, f"PyTorchVideo finds no frame between {bounds}")
    chosen = subsample_indices(frames_CTHW.shape[1], num_frames).tolist()
    made = {at: convert(rgb_frame(frames_CTHW[:, at].permute(1, 2, 0).byte().numpy())) for at in set(chosen)}
    return [made[at] for at in chosen]
