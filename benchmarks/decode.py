"""CPU time from a file to a model's views: ours against PyTorchVideo's EncodedVideo, for the same clips.

    python benchmarks/decode.py /path/to/videos --views 1x1 --span full
    python benchmarks/decode.py                      # generated clips, 320 x 240, 200 frames

Ours is ``vidray.video.views.decode_views``. The other is ``EncodedVideo.get_clip`` on the same spans, then what
``UniformTemporalSubsample``, ``ShortSideScale`` and ``CenterCrop`` do (``pytorchvideo.transforms`` itself does not
import beside today's torchvision). Both take the bytes from memory; CPU time of all threads is counted.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorchvideo.data.encoded_video_pyav import EncodedVideoPyAV
from torchvision.transforms.v2 import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.videos import make_video
from vidray.errors import VideoError
from vidray.types import Limits, ViewConfig
from vidray.video.decoder import VideoDecoder
from vidray.video.sampling import spread_spans
from vidray.video.views import decode_views


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a folder of videos, searched recursively")
    parser.add_argument("--views", default="1x1", help="clips x crops, e.g. 5x3 (default 1x1)")
    parser.add_argument("--span", choices=("full", "stride"), default="full")
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is reported")
    parser.add_argument("--generated-frames", type=int, default=200, help="frames of a generated clip (default 200)")
    args = parser.parse_args(arguments)
    num_clips, num_crops = (int(number) for number in args.views.split("x"))
    view = ViewConfig(
        num_frames=args.num_frames, size=args.size, span=args.span, num_clips=num_clips, num_crops=num_crops
    )
    videos = files_of(args.folder) if args.folder else generated(args.generated_frames)
    report(videos, view, args.repeats)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files in a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def generated(num_frames: int) -> dict[str, bytes]:
    """Clips like those of UCF101 and Kinetics: something moves, and the codec has work to do."""
    common: dict[str, Any] = {"num_frames": num_frames, "width": 320, "height": 240, "draw": wave}
    return {
        "mpeg4.avi": make_video(fps=25, codec="mpeg4", container="avi", **common),
        "h264.mp4": make_video(max_b_frames=3, options={"preset": "medium", "qp": "23"}, **common),
    }


def wave(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: a moving interference pattern with noise."""
    y, x = np.mgrid[:height, :width]
    red = np.sin(x / 9 + number / 5) + np.cos(y / 13 - number / 7)
    noise = np.random.default_rng(number).normal(0, 4, (height, width, 1))
    picture = 128 + 50 * np.stack([red, np.roll(red, 40, axis=1), red[::-1]], axis=2) + noise
    return picture.clip(0, 255).astype(np.uint8)


def peers_clips(data: bytes, view: ViewConfig) -> list[torch.Tensor]:
    """(C, T, H, W) float32 per clip: all its frames at full size, by PyTorchVideo."""
    spans = spread_spans(duration_seconds=VideoDecoder(data).duration, view=view)
    video = EncodedVideoPyAV(io.BytesIO(data), decode_audio=False)
    return [video.get_clip(span.start_seconds, span.end_seconds)["video"] for span in spans]


def peers_views(data: bytes, view: ViewConfig) -> torch.Tensor:
    """(V, T, H, W, C) uint8, by PyTorchVideo and torchvision (centre crops alone)."""
    views = []
    for frames_CTHW in peers_clips(data, view):
        last = frames_CTHW.shape[1] - 1
        kept = frames_CTHW.index_select(1, torch.linspace(0, last, view.num_frames).clamp(0, last).long())
        resized = functional.resize(kept.permute(1, 0, 2, 3), [view.size], antialias=True)
        views.append(functional.center_crop(resized, [view.size] * 2).round().to(torch.uint8))
    return torch.stack(views).permute(0, 1, 3, 4, 2)


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least CPU time of several calls, all threads together."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def report(videos: dict[str, bytes], view: ViewConfig, repeats: int) -> None:
    """Prints one line per video and one for all."""
    torch.set_num_threads(1)  # waiting threads would count as CPU time
    limits = Limits()
    totals = np.zeros(3)
    print(f"{'CPU ms per video':40} {'ours':>9} {'get_clip':>9} {'+ resize':>9} {'ours/get_clip':>14}")
    for name, data in videos.items():
        try:
            peers_views(data, view)
            works = (
                lambda data=data: decode_views(data, view=view, limits=limits),
                lambda data=data: peers_clips(data, view),
                lambda data=data: peers_views(data, view),
            )
            seconds = np.array([cpu_seconds(work, repeats) for work in works])
        except (VideoError, TypeError, AttributeError, RuntimeError) as error:
            print(f"{name[:40]:40} left out: {type(error).__name__}: {error}")
            continue
        totals += seconds
        print_line(name, seconds)
    print_line("all", totals)


def print_line(name: str, seconds: np.ndarray) -> None:
    """One row of the table; seconds are those of ours, get_clip, and get_clip with resize."""
    ours, get_clip, resize = 1000 * seconds
    print(f"{name[:40]:40} {ours:9.1f} {get_clip:9.1f} {resize:9.1f} {ours / max(get_clip, 1e-9):14.3f}")


if __name__ == "__main__":
    main()
