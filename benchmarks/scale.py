"""What grows with the number of videos and what must not: memory of a run, and the time and memory of planning.

    python benchmarks/scale.py memory                 # 1,000 and 20,000 videos through stub stages
    python benchmarks/scale.py plan                   # 1,000,000 listed objects against 1,000,000 done ones
    python benchmarks/scale.py plan --num-objects 5000000

``memory`` runs whole score jobs, on Ray, whose decode stage makes up small views and whose predict stage makes up
scores, and prints the peak memory of the driver and of every worker. ``plan`` writes a manifest of objects that do not
exist, plans them against an output that holds as many keys of other objects, commits the plan, starts to execute it
and stops at the first rows. Every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.checkpoints import make_videomae
from vidray.cpu_tuning import use_one_arena
from vidray.scoring import history, output
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.output import ROW
from vidray.scoring.runners.ray import Stage
from vidray.scoring.stages import DECODED_SCHEMA, PREDICTED_SCHEMA
from vidray.types import Status

_VIEW_BYTES = 8 * 32 * 32 * 3
_SAMPLE_SECONDS = 0.2
_MEBIBYTE = 1024**2


class StubDecode:
    """Views of zeros for every row, and no file is opened."""

    def __call__(self, block: pa.Table) -> pa.Table:
        columns: dict[str, Any] = {name: block[name] for name in (ROW, "uri", "etag", "size_bytes", "attempts")}
        columns |= {
            "status": [Status.OK.value] * block.num_rows,
            "decoder": [f"pid {os.getpid()}"] * block.num_rows,
            "views": [bytes(_VIEW_BYTES)] * block.num_rows,
        }
        return _table(columns, block.num_rows, DECODED_SCHEMA)


class StubPredict:
    """One label for every row."""

    def __call__(self, block: pa.Table) -> pa.Table:
        now = time.time()
        columns: dict[str, Any] = {name: block[name] for name in block.column_names if name != "views"}
        columns |= {
            "label": ["label"] * block.num_rows,
            "predictor": [f"pid {os.getpid()}"] * block.num_rows,
            "predict_started_at": [now] * block.num_rows,
            "predict_ended_at": [now] * block.num_rows,
        }
        return _table(columns, block.num_rows, PREDICTED_SCHEMA)


def _table(columns: dict[str, Any], num_rows: int, schema: pa.Schema) -> pa.Table:
    return pa.table({name: columns.get(name, [None] * num_rows) for name in schema.names}, schema=schema)


def stub_stages(*_: object) -> tuple[Stage, Stage]:
    """In place of the default stages of a job."""
    return Stage(cls=StubDecode, kwargs={}), Stage(cls=StubPredict, kwargs={})


def main() -> None:
    """Parses, and starts a process per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "plan"))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 20_000], help="videos, for memory")
    parser.add_argument("--num-objects", type=int, default=1_000_000, help="for plan")
    parser.add_argument("--here", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here is not None:
        use_one_arena()  # as the command does
        result = measure_memory(args.here) if args.what == "memory" else measure_plan(args.here)
        (args.here / "result.json").write_text(json.dumps(result))
    elif args.what == "memory":
        print_memory({size: in_a_process("memory", num_objects=size, num_done=0) for size in args.sizes})
    else:
        result = in_a_process("plan", num_objects=args.num_objects, num_done=args.num_objects)
        for name, value in result.items():
            print(f"{name:44} {value:10,.1f}")


def in_a_process(what: str, *, num_objects: int, num_done: int) -> dict[str, Any]:
    """Prepares a folder and measures in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="vidray-scale-") as name:
        folder = Path(name)
        write_manifest(folder / "manifest.parquet", prefix="s3://bucket/new", num_objects=num_objects)
        make_videomae(folder / "model", num_frames=8, size=32)
        if num_done:
            write_done(folder / "scores", num_done=num_done)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [sys.executable, str(Path(__file__).resolve()), what, "--here", name]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\nexited with code {done.returncode}:\n{done.stdout[-3000:]}")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result


def write_manifest(path: Path, *, prefix: str, num_objects: int) -> None:
    """Objects that nobody will look for."""
    pq.write_table(_objects(prefix, num_objects), path)


def write_done(folder: Path, *, num_done: int) -> None:
    """An output that holds the keys of other objects, scored by a run that is finished."""
    rows = _objects("s3://bucket/old", num_done)
    extra = {"result_key": "k" * 32, "status": Status.OK.value}
    for name, value in extra.items():
        rows = rows.append_column(name, pa.repeat(value, num_done))
    rows = rows.append_column("attempts", pa.array(np.ones(num_done, np.int32)))
    run = folder / "_runs" / "20260101T000000Z-00000000"
    run.mkdir(parents=True)
    (run / "keys.parquet").write_bytes(output.parquet_bytes(history.keys_of(rows), {}))
    (run / "_SUCCESS").touch()


def _objects(prefix: str, num_objects: int) -> pa.Table:
    numbers = range(num_objects)
    return pa.table(
        {
            "uri": [f"{prefix}/{number % 997:03d}/video-{number:09d}.mp4" for number in numbers],
            "size_bytes": pa.array(np.full(num_objects, 500_000)),
            "etag": [f"{number:032x}" for number in numbers],
        }
    )


def make_job(folder: Path) -> ScoreJob:
    """A job over the folder's manifest, with stub stages."""
    config = ScoreConfig(
        source=(str(folder / "manifest.parquet"),),
        model=str(folder / "model"),
        output=str(folder / "scores"),
        views="1x1",
        ray_address="local",
    )
    return ScoreJob(config, make_stages=stub_stages)


def measure_memory(folder: Path) -> dict[str, Any]:
    """Peak memory of a whole run in MiB: of this process, and of the largest worker of each kind."""
    started = time.perf_counter()
    with sampled_workers() as peaks:
        summaries = make_job(folder).run()
    return {
        "videos": summaries[0]["num_scored"],
        "seconds": time.perf_counter() - started,
        "driver": peak_mebibytes(),
        **{name: value / _MEBIBYTE for name, value in sorted(peaks.items())},
    }


def peak_mebibytes() -> float:
    """Peak memory of this process. Not ``ru_maxrss``, which a process inherits from the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def sampled_workers() -> Iterator[dict[str, int]]:
    """Peak bytes of each kind of worker below this process, without what is shared, as the object store is."""
    peaks: dict[str, int] = {}
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            for name, num_bytes in _workers():
                peaks[name] = max(peaks.get(name, 0), num_bytes)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def _workers() -> list[tuple[str, int]]:
    """Name and memory of each worker process that is there now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline()) or process.name()
            memory = process.memory_info()
            kind = next((kind for kind in ("StubDecode", "StubPredict") if kind in words), None)
            if kind is not None:
                found.append((kind, memory.rss - memory.shared))
    return found


def print_memory(results: dict[int, dict[str, Any]]) -> None:
    """A table with a column per number of videos."""
    names = dict.fromkeys(name for result in results.values() for name in result)
    print("peak memory in MiB; of workers without what they share")
    for name in names:
        print(f"{name:12}" + "".join(f"{result.get(name, float('nan')):12,.1f}" for result in results.values()))


def measure_plan(folder: Path) -> dict[str, Any]:
    """Seconds and peak MiB of planning, of writing the plan, and of the way to the first rows."""
    from vidray.cluster import connected
    from vidray.scoring.plan import commit_plan
    from vidray.scoring.runners import ray as pipeline

    result: dict[str, Any] = {}
    clock = _Lap(result)
    job = make_job(folder)
    clock.lap("reading the checkpoint")
    plan = job._fresh_plan()
    clock.lap("listing and anti-join")
    plan = commit_plan(job.store, plan)
    clock.lap("writing the plan")
    result["videos planned"] = plan.rows.num_rows
    with connected("local"):
        clock.lap("starting Ray")
        cluster = pipeline.read_cluster()
        layout = pipeline.make_layout(job.config, job.view, cluster, num_rows=plan.rows.num_rows)
        decode, predict = stub_stages()
        rows = pipeline.stream(plan.rows, decode=decode, predict=predict, layout=layout, stall_timeout=600)
        with contextlib.closing(rows):  # Ray aborts the process if it is shut down while it executes
            result["rows in the first block"] = next(rows).num_rows
        clock.lap("to the first rows")
    return result


class _Lap:
    """Writes down seconds since the last lap and the peak memory until now."""

    def __init__(self, result: dict[str, Any]) -> None:
        self._result = result
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._result[f"{name}, s"] = now - self._last
        self._result[f"{name}, peak MiB so far"] = peak_mebibytes()
        self._last = time.perf_counter()


if __name__ == "__main__":
    main()
