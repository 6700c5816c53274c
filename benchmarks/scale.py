"""What grows with the number of videos and what must not: memory of a run, and the time and memory of planning.

    python benchmarks/scale.py memory                 # 1,000 and 20,000 videos through stub stages
    python benchmarks/scale.py memory --runner ray
    python benchmarks/scale.py plan                   # 1,000,000 listed objects against 1,000,000 done ones
    python benchmarks/scale.py plan --num-objects 5000000

``memory`` runs whole score jobs whose decode stage makes up small views and whose predict stage makes up scores, and
prints the peak memory of the driver and of the workers. ``plan`` writes a manifest of objects that do not exist, plans
them against an output that holds as many keys of other objects, begins to score them and stops at the first rows.
Every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.stub_stages import peak_bytes, stub_stages
from tests.support.checkpoints import make_videomae
from vidray.cpu_tuning import use_one_arena
from vidray.progress import Progress
from vidray.scoring import history, output
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.types import Status

ROOT = Path(__file__).resolve().parent.parent
_MEBIBYTE = 1024**2


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, and starts a process per measurement."""
    args = parse(arguments)
    if args.here is not None:
        use_one_arena()  # as the command does
        result = (measure_memory if args.what == "memory" else measure_plan)(args.here, args.runner)
        (args.here / "result.json").write_text(json.dumps(result))
    elif args.what == "memory":
        print_memory({size: in_a_process(args, num_objects=size, num_done=0) for size in args.sizes})
    else:
        for name, value in in_a_process(args, num_objects=args.num_objects, num_done=args.num_objects).items():
            print(f"{name:56} {value:10,.1f}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "plan"))
    parser.add_argument("--runner", choices=("local", "ray"), default="local")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 20_000], help="videos, for memory")
    parser.add_argument("--num-objects", type=int, default=1_000_000, help="for plan")
    parser.add_argument("--here", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def in_a_process(args: argparse.Namespace, *, num_objects: int, num_done: int) -> dict[str, Any]:
    """Prepares a folder and measures in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="vidray-scale-") as name:
        folder = Path(name)
        write_manifest(folder / "manifest.parquet", prefix="s3://bucket/new", num_objects=num_objects)
        make_videomae(folder / "model", num_frames=8, size=32)
        if num_done:
            write_done(folder / "scores", num_done=num_done)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONPATH"] = str(ROOT)  # where workers find the stub stages
        command = [sys.executable, str(Path(__file__).resolve()), args.what, "--runner", args.runner, "--here", name]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\nexited with code {done.returncode}:\n{done.stdout[-3000:]}")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result


def write_manifest(path: Path, *, prefix: str, num_objects: int) -> None:
    """Objects that nobody will look for."""
    with pq.ParquetWriter(path, OBJECTS) as writer:
        for table in _objects(prefix, num_objects):
            writer.write_table(table)


def write_done(folder: Path, *, num_done: int) -> None:
    """An output that holds the keys of other objects, scored by a run that is finished."""
    run = folder / "_runs" / "20260101T000000Z-00000000"
    run.mkdir(parents=True)
    keys = (_keys(len(numbers)) for numbers in _steps(num_done))
    (run / "keys.parquet").write_bytes(output.parquet_stream(keys, history.KEYS_SCHEMA, {}))
    (run / "_SUCCESS").touch()


OBJECTS = pa.schema([("uri", pa.string()), ("size_bytes", pa.int64()), ("etag", pa.string())])
_STEP = 100_000
_DRAW = np.random.default_rng(1)


def _steps(num_rows: int) -> Iterator[range]:
    return (range(start, min(start + _STEP, num_rows)) for start in range(0, num_rows, _STEP))


def _keys(num_rows: int) -> pa.Table:
    attempts = pa.array(np.ones(num_rows, np.int32))
    columns = [_random(num_rows, 16), pa.repeat(Status.OK.value, num_rows), attempts, pa.repeat(0, num_rows)]
    return pa.table([*columns, pa.nulls(num_rows)], history.KEYS_SCHEMA.names).cast(history.KEYS_SCHEMA)


def _objects(prefix: str, num_objects: int) -> Iterator[pa.Table]:
    """With etags that compress as badly as those of a store."""
    for numbers in _steps(num_objects):
        folders, names = (
            pc.utf8_lpad(pa.array(values).cast(pa.string()), width, "0")
            for values, width in ((np.array(numbers) % 997, 3), (np.array(numbers), 9))
        )
        uris = pc.binary_join_element_wise(
            prefix, folders, pc.binary_join_element_wise("video-", names, ".mp4", ""), "/"
        )
        sizes = pa.array(_DRAW.integers(400_000, 600_000, len(numbers)))
        yield pa.table([uris, sizes, _random(len(numbers), 32, b"0123456789abcdef")], OBJECTS.names).cast(OBJECTS)


def _random(num_rows: int, num_bytes: int, letters: bytes = bytes(range(256))) -> pa.Array:
    drawn = np.frombuffer(letters, np.uint8)[_DRAW.integers(0, len(letters), num_rows * num_bytes)]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(num_bytes), num_rows, [None, pa.py_buffer(drawn)]).cast(
        pa.binary()
    )


def make_job(folder: Path, runner: Any, *, progress: Progress | None = None) -> ScoreJob:
    """A job over the folder's manifest, with stub stages."""
    config = ScoreConfig(
        source=(str(folder / "manifest.parquet"),),
        model=str(folder / "model"),
        output=str(folder / "scores"),
        views="1x1",
        device="cpu",
        runner=runner,
    )
    return ScoreJob(config, progress=progress, make_stages=stub_stages(folder / "peaks"))


def measure_memory(folder: Path, runner: str) -> dict[str, Any]:
    """Peak memory of a whole run in MiB: of this process, and of the largest worker of each kind."""
    started = time.perf_counter()
    curve = MemoryCurve()
    summaries = make_job(folder, runner, progress=curve).run()
    return {
        "videos": summaries[0]["num_scored"],
        "seconds": time.perf_counter() - started,
        **curve.result,
        "driver": peak_mebibytes(),
        **{f"{kind} worker": peak_bytes(folder / "peaks", kind) / _MEBIBYTE for kind in ("decode", "predict")},
    }


class MemoryCurve(Progress):
    """Follows a run as the live line does. Writes down the memory of the driver after each quarter of the rows."""

    def __init__(self) -> None:
        super().__init__(out=io.StringIO())
        self.result: dict[str, float] = {}
        self._num_done, self._total = 0, 0

    def start(self, *, total: int, done: int) -> None:
        """The plan is written."""
        super().start(total=total, done=done)
        self._total = total
        self.result["driver at 0 %"] = mebibytes("VmRSS")

    def advance(self, *, done: int, failed: int) -> None:
        """Rows have come."""
        super().advance(done=done, failed=failed)
        before, self._num_done = self._num_done, self._num_done + done
        if (quarter := 4 * self._num_done // self._total) > 4 * before // self._total:
            self.result[f"driver at {25 * quarter} %"] = mebibytes("VmRSS")


def peak_mebibytes() -> float:
    """Peak memory of this process. Not ``ru_maxrss``, which a process inherits from the one that started it."""
    return mebibytes("VmHWM")


def mebibytes(name: str) -> float:
    """A line of what the kernel says of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def print_memory(results: dict[int, dict[str, Any]]) -> None:
    """A table with a column per number of videos."""
    print("peak memory in MiB; of workers without what they share")
    for name in next(iter(results.values())):
        print(f"{name:14}" + "".join(f"{result[name]:12,.1f}" for result in results.values()))


def measure_plan(folder: Path, runner: str) -> dict[str, Any]:
    """Seconds and peak MiB of reading the checkpoint, of planning, and of the way to the first rows."""
    laps = LapProgress()
    job = make_job(folder, runner, progress=laps)
    laps.lap("reading the checkpoint")
    try:
        job.run()
    except FirstRowsError:
        return laps.result
    raise RuntimeError("the run ended without a row")


class FirstRowsError(Exception):
    """The first rows came: enough was seen."""


class LapProgress(Progress):
    """Follows a run as the live line does. Writes down the seconds of each lap and the peak memory until then."""

    def __init__(self) -> None:
        super().__init__(out=io.StringIO())
        self.result: dict[str, Any] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.perf_counter()
        self.result[f"{name}, s"] = now - self._last
        self.result[f"{name}, peak MiB so far"] = peak_mebibytes()
        self._last = time.perf_counter()

    def start(self, *, total: int, done: int) -> None:
        """The plan is written, and its rows will be counted."""
        super().start(total=total, done=done)
        self.lap("listing, anti-join, writing the plan")
        self.result["videos planned"] = total

    def advance(self, *, done: int, failed: int) -> None:
        """Rows have come. Raises FirstRowsError."""
        self.lap("to the first rows")
        self.result["rows in the first block"] = done
        raise FirstRowsError


if __name__ == "__main__":
    main()
