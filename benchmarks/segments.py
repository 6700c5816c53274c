"""What windows cost: jobs of `vidray score --segments 2` against the pass that sees whole videos, per frame seen.

    python benchmarks/segments.py --videos /path/to/clips   # without --videos, clips are generated
    python benchmarks/segments.py --num-videos 12 --turns 1 # a try

Each job is a process of its own; the two kinds take turns. A rate is of the time in which rows came, without start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.workload import make_bucket, prepare_clips
from tests.support.checkpoints import make_benchmark_videomae

NUM_FRAMES = 16
JOBS = {"whole": ["--views", "1x1", "--span", "full"], "segments": ["--segments", "2"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints a line for each job and their ratio."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="vidray-segments-") as name:
        folder = Path(name)
        make_benchmark_videomae(folder / "model")
        clips = prepare_clips(folder / "clips", source=args.videos)
        make_bucket(folder / "videos", clips, num_videos=args.num_videos)
        ratios = []
        for _ in range(args.turns):
            costs = {kind: milliseconds_per_frame(folder, flags) for kind, flags in JOBS.items()}
            ratios.append(costs["segments"] / costs["whole"])
            print(
                " ".join(f"{kind} {cost:.2f} ms per frame" for kind, cost in costs.items()), f"ratio {ratios[-1]:.2f}"
            )
        print(f"segments / whole: {statistics.median(ratios):.2f} (median of {len(ratios)})")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of videos to copy")
    parser.add_argument("--num-videos", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args(arguments)


def milliseconds_per_frame(folder: Path, flags: list[str]) -> float:
    """Of a job on fresh output: wall-clock time in which rows came, by the frames that the network saw."""
    output = folder / f"out-{time.monotonic_ns()}"
    places = ["--source", str(folder / "videos"), "--model", str(folder / "model"), "--output", str(output)]
    command = [sys.executable, "jobs/score.py", *places, "--device", "cpu", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    root = Path(__file__).resolve().parent.parent
    subprocess.run(command, check=True, env=environment, cwd=root, capture_output=True)
    (path,) = output.glob("_runs/*/summary.json")
    process = json.loads(path.read_text())["this_process"]
    views = pyarrow.dataset.dataset(f"{output}/predictions", format="parquet").to_table(columns=["num_views"])
    num_frames = NUM_FRAMES * sum(views["num_views"].to_pylist())
    return 1000 * process["num_videos"] / process["videos_per_second"] / num_frames


if __name__ == "__main__":
    main()
