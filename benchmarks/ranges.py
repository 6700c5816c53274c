"""What it costs to cut clips out of a long video in a store: by fetching it whole, and only the parts that are needed.

    python benchmarks/ranges.py                              # an MP4 of 1 GB, five clips of it
    python benchmarks/ranges.py --megabytes 50 --turns 1     # a try

The store is a web server on loopback, in a process of its own, that waits before each answer and sends so many bytes a
second. Fetching and decoding are those of a score run (its decode stage, one video after the other); the two kinds take
turns. Short clips are below the size from which on parts are fetched, so both kinds should cost the same there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.workload import make_clip
from tests.support.range_server import RangeServer
from tests.support.videos import make_video, noisy_frame, repeated
from vidray.scoring.config import ScoreConfig
from vidray.scoring.output import ROW
from vidray.scoring.plan_rows import PLAN_SCHEMA
from vidray.scoring.stages import DecodeStage
from vidray.storage.location import locate
from vidray.storage.versions import version_at
from vidray.types import Limits, ViewConfig

VIEW = ViewConfig(num_frames=16, size=224, num_clips=5)
ABOVE_BYTES = {"whole": None, "parts": ScoreConfig.range_reads_above_bytes}
_RATE = {"qp": "-1", "b": "8M", "maxrate": "8M", "bufsize": "8M", "preset": "ultrafast"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints a line for each kind of object and way to fetch it, and their ratio."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="vidray-ranges-") as name:
        folder = Path(name)
        (folder / "long.mp4").write_bytes(make_long(args.megabytes * 1_000_000, gop_size=args.gop_size))
        (folder / "short.avi").write_bytes(make_clip(0))
        with serving(folder, args) as url:
            for kind, names in (("long", ["long.mp4"]), ("short", ["short.avi"] * args.num_short)):
                report(kind, measure(url, names, turns=args.turns))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the long video (default 1000)")
    parser.add_argument("--num-short", type=int, default=50, help="short clips (default 50)")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds before each answer (default 0.03)")
    parser.add_argument("--megabytes-per-second", type=float, default=100.0, help="of the store (default 100)")
    parser.add_argument("--gop-size", type=int, default=250, help="frames from a key frame to the next (default 250)")
    parser.add_argument("--turns", type=int, default=4)
    return parser.parse_args(arguments)


def make_long(num_bytes: int, *, gop_size: int) -> bytes:
    """A video of 1280 × 720 at 8 Mbit/s."""
    video = make_video(num_frames=250, fps=25, width=1280, height=720, gop_size=gop_size, options=_RATE, draw=picture)
    return repeated(video, max(2, num_bytes // len(video)))


def picture(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: coarse noise, another for each number."""
    blocks = noisy_frame(number, width // 16, height // 16)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


@contextmanager
def serving(folder: Path, args: argparse.Namespace) -> Iterator[str]:
    """The URL of a server of the folder's files."""
    here, there = multiprocessing.Pipe()
    how = {"latency_seconds": args.latency, "bytes_per_second": args.megabytes_per_second * 1e6}
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, how, there), daemon=True)
    server.start()
    try:
        yield here.recv()
    finally:
        server.terminate()
        server.join()


def serve(folder: Path, how: dict[str, float], connection: Connection) -> None:
    """The life of the server's process."""
    with RangeServer({path.name: path.read_bytes() for path in folder.iterdir()}, **how) as server:
        connection.send(server.url)
        time.sleep(3600 * 24)


def measure(url: str, names: Sequence[str], *, turns: int) -> dict[str, tuple[float, int]]:
    """Of each way: median seconds from asking to the last views, and the bytes fetched."""
    size, etag = version_at(locate(f"{url}/{names[0]}")) or (None, None)
    rows = [
        {ROW: number, "uri": f"{url}/{name}", "size_bytes": size, "etag": etag, "attempts": 1}
        for number, name in enumerate(names)
    ]
    plan = pa.Table.from_pylist(rows, PLAN_SCHEMA)
    stages = {way: DecodeStage(view=VIEW, limits=Limits(), range_reads_above_bytes=n) for way, n in ABOVE_BYTES.items()}
    for stage in stages.values():
        stage._sandbox.decode(make_video(num_frames=5))  # its child has started
    seconds: dict[str, list[float]] = {way: [] for way in stages}
    num_bytes, views = {}, {}
    for turn in range(turns):
        for way, stage in list(stages.items())[:: 1 if turn % 2 else -1]:  # the second of a turn is a little faster
            started = time.perf_counter()
            table = stage(plan)
            seconds[way].append(time.perf_counter() - started)
            assert set(table["status"].to_pylist()) == {"ok"}, table["error"]
            num_bytes[way], views[way] = sum(table["bytes_fetched"].to_pylist()), table["views"]
    assert views["whole"].equals(views["parts"]), "other views"
    for stage in stages.values():
        stage._sandbox.close()
    return {way: (statistics.median(times), num_bytes[way]) for way, times in seconds.items()}


def report(kind: str, figures: dict[str, tuple[float, int]]) -> None:
    """A line for each way, and one for the ratio."""
    for way, (seconds, num_bytes) in figures.items():
        print(f"{kind}, {way}: {seconds:.2f} s, {num_bytes / 1e6:.1f} MB")
    (whole_seconds, whole_bytes), (seconds, num_bytes) = figures["whole"], figures["parts"]
    print(f"{kind}: {whole_seconds / seconds:.2f} times less time, {whole_bytes / num_bytes:.1f} times fewer bytes")


if __name__ == "__main__":
    main()
