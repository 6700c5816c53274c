"""Clips as PyTorchVideo itself decodes them: ``--decoder pytorchvideo``.

``EncodedVideo`` decodes every frame of a span at full size, where `vidray.video.decoder` finds the same frames for a
fraction of the time. It is here to compare with, and for whoever wants that very library.
"""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import sys
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
    video_class = select_video_class("pyav")
    logger = logging.getLogger(video_class.__module__)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(_CAUGHT)
    return video_class


class _Caught(logging.Handler):
    """Keeps what ``EncodedVideo`` catches while it decodes: it only logs that, and takes it for no frames."""

    last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = sys.exc_info()[1] or self.last


_CAUGHT = _Caught()


def sample_clips(
    data: bytes | memoryview, spans: Sequence[ClipSpan], *, num_frames: int, convert: Convert
) -> list[list[Picture]]:
    """For each span the frames of ``EncodedVideo.get_clip`` that ``UniformTemporalSubsample`` takes, converted.

    Raises:
        VideoError: CORRUPT if PyTorchVideo cannot open the file, or finds no frame in a span; UNSUPPORTED if it cannot
            make one clip of the frames, as where their size changes.
        MemoryError: the frames of a span, all of them, at full size and as float32, need more than the sandbox allows.
    """
    video_class = load()
    _CAUGHT.last = None
    try:
        video = video_class(io.BytesIO(data), decode_audio=False)
    except RuntimeError as error:
        _raise_lack_of_memory(error.__context__ or _CAUGHT.last)
        raise VideoError(Status.CORRUPT, f"PyTorchVideo: {error}") from error
    try:
        return [_pictures(video, span, num_frames, convert) for span in spans]
    finally:
        video.close()


def _pictures(video: Any, span: ClipSpan, num_frames: int, convert: Convert) -> list[Picture]:
    try:
        frames_CTHW = video.get_clip(span.start_seconds, span.end_seconds)["video"]
    except RuntimeError as error:
        if "allocate memory" in str(error):  # what torch raises then has no class of its own
            raise MemoryError(str(error)) from error
        raise VideoError(Status.UNSUPPORTED, f"PyTorchVideo: {error}") from error
    if frames_CTHW is None:
        _raise_lack_of_memory(_CAUGHT.last)
        bounds = f"{float(span.start_seconds):g} and {float(span.end_seconds):g} s"
        raise VideoError(Status.CORRUPT, f"PyTorchVideo finds no frame between {bounds}")
    chosen = subsample_indices(frames_CTHW.shape[1], num_frames).tolist()
    made = {at: convert(rgb_frame(frames_CTHW[:, at].permute(1, 2, 0).byte().numpy())) for at in set(chosen)}
    return [made[at] for at in chosen]


def _raise_lack_of_memory(error: BaseException | None) -> None:
    if isinstance(error, MemoryError):
        raise MemoryError("PyTorchVideo needs the memory of all frames of a span") from error
