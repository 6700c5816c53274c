"""How fast whole videos are streamed: jobs of `vidray score --streaming` with MoViNet-A0, against the network alone.

    python benchmarks/streaming.py                          # 6 videos of a minute, generated, and as many short clips
    python benchmarks/streaming.py --num-videos 2 --minutes 60
    python benchmarks/streaming.py --jobs timeline --num-videos 1 --minutes 0.1 --clip-seconds 2  # a try

Each job is a process of its own. Rates are of the time in which rows streamed (`this_process` of summary.json), so
without start-up. ``alone``: the network on frames that are there already, one thread per core, no decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.workload import make_clip
from tests.support.videos import repeated
from vidray.models.movinet.variants import VARIANTS

FRAMES_PER_SECOND = VARIANTS["a0"].fps
JOBS: dict[str, tuple[str, list[str]]] = {
    "clips": ("clips", []),
    "videos": ("videos", []),
    "timeline": ("videos", ["--timeline", "10"]),
}
"""What is streamed, and how: folder and flags."""
_CLIPS_PER_VIDEO = 4
_CLIP_FPS = 25


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints a table."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="vidray-streaming-") as name:
        folder = Path(name)
        make_model(folder / "model")
        make_videos(folder, args)
        print(f"alone {alone(folder / 'model', seconds=args.alone_seconds):.1f} frames/s")
        for kind, flags in (JOBS[name] for name in args.jobs):
            print_job(kind, flags, job(folder, kind, [*flags, *batch_flags(args.batch_size)]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--num-videos", type=int, default=6, help=f"and {_CLIPS_PER_VIDEO} clips for each of them")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each video")
    parser.add_argument("--clip-seconds", type=int, default=8, help="of each clip")
    parser.add_argument("--alone-seconds", type=float, default=10.0, help="to measure the network alone for")
    parser.add_argument("--batch-size", type=int, help="videos side by side; the job's default if not given")
    return parser.parse_args(arguments)


def make_videos(folder: Path, args: argparse.Namespace) -> None:
    """Short clips in ``clips``, and the same clip played again and again in ``videos``."""
    clip = as_mp4(make_clip(0, num_frames=_CLIP_FPS * args.clip_seconds))
    times = round(args.minutes * 60 / args.clip_seconds)
    for kind, data, number in (
        ("clips", clip, _CLIPS_PER_VIDEO * args.num_videos),
        ("videos", repeated(clip, times), args.num_videos),
    ):
        (folder / kind).mkdir()
        for index in range(number):
            (folder / kind / f"{index:04d}.mp4").write_bytes(data)


def batch_flags(batch_size: int | None) -> list[str]:
    """As the command wants it."""
    return [] if batch_size is None else ["--batch-size", str(batch_size)]


def as_mp4(avi: bytes) -> bytes:
    """The clip of the other benchmarks, 320 × 240, as H.264 without B-frames."""
    import io

    import av

    with av.open(io.BytesIO(avi)) as source, tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format="mp4") as target:
            stream = target.add_stream("libx264", rate=_CLIP_FPS, options={"bf": "0", "crf": "28"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for frame in source.decode(video=0):
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def make_model(folder: Path) -> None:
    """MoViNet-A0 stream with random weights."""
    from vidray.checkpoints.write import write_checkpoint
    from vidray.models.movinet.configuration import MoViNetConfig
    from vidray.models.movinet.modeling import MoViNetForVideoClassification
    from vidray.models.movinet.variants import movinet_view

    model = MoViNetForVideoClassification(MoViNetConfig(variant="a0", stream=True, num_labels=600))
    write_checkpoint(model, movinet_view(model.config), folder)


def alone(model: Path, *, seconds: float) -> float:
    """Frames per second of the network, chunks of eight, on one thread per core at once."""
    import torch

    from vidray.checkpoints.checkpoint import load_model, read_checkpoint

    torch.set_num_threads(1)
    network = load_model(read_checkpoint(str(model)))
    counts = []

    def work() -> None:
        frames, state, count = torch.rand(1, 8, 3, 172, 172), None, 0
        with torch.inference_mode():
            while time.perf_counter() < end:
                _, state = network.forward_stream(frames, state)
                count += 8
        counts.append(count)

    started = time.perf_counter()
    end = started + seconds
    threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def job(folder: Path, kind: str, flags: list[str]) -> dict:
    """The summary of a job on fresh output, and the seconds of video that it scored."""
    import pyarrow.dataset

    output = folder / f"out-{time.monotonic_ns()}"
    places = ["--source", str(folder / kind), "--model", str(folder / "model"), "--output", str(output)]
    command = [sys.executable, "jobs/score.py", *places, "--streaming", "--device", "cpu", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).resolve().parent.parent)
    seconds = time.perf_counter() - started
    (path,) = output.glob("_runs/*/summary.json")
    rows = pyarrow.dataset.dataset(f"{output}/predictions", format="parquet").to_table()
    video_seconds = sum(rows["duration_seconds"].to_pylist())
    return json.loads(path.read_text())["this_process"] | {"video_seconds": video_seconds, "job_seconds": seconds}


def print_job(kind: str, flags: list[str], result: dict) -> None:
    """One line of the table."""
    streaming = result["num_videos"] / result["videos_per_second"]
    rate = result["video_seconds"] / streaming
    stages = " ".join(f"{stage} {seconds:.1f}" for stage, seconds in result["stage_seconds"].items())
    print(
        f"{kind} {' '.join(flags)}: {result['num_videos']} videos, {result['video_seconds']:.0f} s of video: "
        f"{result['videos_per_second']:.2f} videos/s, {rate:.1f} s of video/s, "
        f"{rate * FRAMES_PER_SECOND:.1f} frames/s; "
        f"whole job {result['job_seconds']:.1f} s; worker seconds: {stages}"
    )


if __name__ == "__main__":
    main()
