"""What it saves to have small clips in tar files: the same clips as objects and in shards, on a store with a delay.

    python benchmarks/tars.py                                       # 10,000 clips, in 100 shards
    python benchmarks/tars.py --num-clips 500 --num-shards 5        # a try

The store is the S3 server of the tests, in a process of its own, which waits before each answer. Both are listed, then
fetched and decoded in blocks by one decode stage of a score run, in turn.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tarfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.servers import s3_server
from tests.support.stores import filesystem
from tests.support.videos import make_video
from vidray.scoring.config import ScoreConfig
from vidray.scoring.planning import plan_fresh
from vidray.scoring.stages import DecodeStage
from vidray.storage.store import Store
from vidray.types import Limits, ViewConfig

VIEW = ViewConfig(num_frames=4, size=32, num_clips=1)
BLOCK_ROWS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One pass over all clips."""

    listing_seconds: float
    scoring_seconds: float
    """Of fetching and decoding."""
    request_seconds: float
    """What the requests took, of all threads together."""

    @property
    def seconds(self) -> float:
        return self.listing_seconds + self.scoring_seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints a line for each kind and their ratio."""
    args = parse(arguments)
    with s3_server(delay_seconds=args.delay) as server:
        os.environ.update(server.env)
        upload("s3://clips", num_clips=args.num_clips, num_shards=args.num_shards)
        turns: dict[str, list[Turn]] = {"objects": [], "tars": []}
        for _ in range(args.turns):
            for kind, found in turns.items():
                found.append(measure(f"s3://clips/{kind}", num_clips=args.num_clips))
    report(turns, num_clips=args.num_clips)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, default=10_000)
    parser.add_argument("--num-shards", type=int, default=100)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds before each answer (default 0.02)")
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args(arguments)


def upload(bucket: str, *, num_clips: int, num_shards: int) -> None:
    """The clips below ``objects/`` and, as many in each shard, below ``tars/``."""
    fs, root = filesystem(bucket)
    fs.call_s3("create_bucket", Bucket=root)
    video = make_video(num_frames=30, width=128, height=96)
    names = [f"{number:06d}.mp4" for number in range(num_clips)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: fs.pipe_file(f"{root}/objects/{name}", video), names))
        for shard, chosen in enumerate(np.array_split(names, num_shards)):
            fs.pipe_file(f"{root}/tars/{shard:05d}.tar", make_tar([str(name) for name in chosen], video))


def make_tar(names: Sequence[str], video: bytes) -> bytes:
    """A tar file with one video under many names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(video)
            tar.addfile(info, io.BytesIO(video))
    return file.getvalue()


def measure(source: str, *, num_clips: int) -> Turn:
    """Lists, fetches and decodes all clips of a source, as a score run does."""
    started = time.perf_counter()
    config = ScoreConfig(source=(source,), model="-", output="-")
    known = {"fingerprint": "", "view_config": VIEW.to_json(), "precision": "fp32", "result_key": "k"}
    plan, _ = plan_fresh(Store(f"memory://{uuid.uuid4().hex}"), config, **known)
    listed_at = time.perf_counter()
    rows = plan.rows.between(0, num_clips)
    stage = DecodeStage(view=VIEW, limits=Limits())
    stage(rows.slice(0, 1))  # its child has started
    began_at = time.perf_counter()
    blocks = [stage(rows.slice(at, BLOCK_ROWS)) for at in range(0, num_clips, BLOCK_ROWS)]
    ended_at = time.perf_counter()
    stage._sandbox.close()
    table = pa.concat_tables(block.select(["status", "fetch_seconds"]) for block in blocks)
    assert table["status"].to_pylist() == ["ok"] * num_clips, source
    return Turn(
        listing_seconds=listed_at - started,
        scoring_seconds=ended_at - began_at,
        request_seconds=sum(table["fetch_seconds"].to_pylist()),
    )


def report(turns: dict[str, list[Turn]], *, num_clips: int) -> None:
    """A line for each kind, and one for the ratios."""
    for kind, found in turns.items():
        listing, scoring, requests = (
            statistics.median(getattr(turn, f"{name}_seconds") for turn in found)
            for name in ("listing", "scoring", "request")
        )
        print(
            f"{kind}: listing {listing:.2f} s, fetching and decoding {scoring:.1f} s, "
            f"{1000 * requests / num_clips:.2f} ms of requests per clip"
        )
    for name in ("request_seconds", "scoring_seconds", "seconds"):
        ratios = [getattr(a, name) / getattr(b, name) for a, b in zip(turns["objects"], turns["tars"], strict=True)]
        print(f"{name.removesuffix('_seconds')}: objects / tars {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
