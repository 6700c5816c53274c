"""PyTorchVideo's decoder, to compare ours with."""

from __future__ import annotations

import io
import re

import av
import torch
from pytorchvideo.data.encoded_video_pyav import EncodedVideoPyAV


def pytorchvideo_of(data: bytes, *, seeks: bool = True) -> EncodedVideoPyAV:
    """PyTorchVideo's EncodedVideo; with ``seeks=False`` it has all frames, as it does for files without a duration.

    MPEG-4 in AVI whose B-frames share packets (some clips of UCF101) it would show in the order of time stamps that
    FFmpeg guessed wrongly: 0, 1, 3, 2. There it is given the frames in the order in which the codec shows them.
    """
    video = EncodedVideoPyAV(io.BytesIO(data), decode_audio=False)
    is_packed = re.search(rb"DivX\d+b\d+p", data[:65536]) is not None
    if is_packed or not seeks:
        with av.open(io.BytesIO(data)) as container:
            frames = list(container.decode(video=0))
        times = range(len(frames)) if is_packed else [frame.pts for frame in frames]
        of_time = dict(zip(times, frames, strict=True))
        video._video = [(torch.from_numpy(of_time[pts].to_rgb().to_ndarray()), pts) for pts in sorted(of_time)]
        video._selective_decoding = False
    return video
