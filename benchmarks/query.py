"""What a question about a year of nights takes: seconds, and peak memory, of `vidray query`.

    python benchmarks/query.py                                  # 400 runs of 25,000 rows, 7 parts each: 10 million rows
    python benchmarks/query.py --rows-per-part 250              # 100 parts each, as runs of that size have by default
    python benchmarks/query.py --compact                        # also after `vidray compact`
    python benchmarks/query.py --runs 3 --rows 100 --rows-per-part 40      # a try

Rows have the columns of real ones, 400 labels and five of them in ``top_k``; four in a hundred are of a video that an
earlier night has scored already. Each question is a command in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vidray.results.compact import CompactConfig, compact
from vidray.scoring.history import run_file
from vidray.scoring.output import PREDICTION_SCHEMA, TIME_TYPE, TOP_K_TYPE, parquet_bytes, part_path

ROOT = Path(__file__).resolve().parent.parent
_LABELS = np.array([f"label {number:03d}" for number in range(400)])
_TOP_K = 5
QUESTIONS = {
    "labels of all attempts": "SELECT label, count(*) AS n FROM all_attempts GROUP BY label",
    "labels of current rows": "SELECT label, count(*) AS n FROM predictions GROUP BY label",
    "failures": "SELECT status, count(*) AS n FROM failures GROUP BY status",
    "one video": "SELECT label FROM predictions WHERE uri LIKE '%/000000007.mp4'",
}
_CHILD = """
import resource, sys
from vidray.cli.main import main
code = main(["query", "--output", sys.argv[1], sys.argv[2]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
sys.exit(code)
"""


def night(day: int, num_rows: int, rng: np.random.Generator) -> pa.Table:
    """The rows of one run: new videos, but for four in a hundred."""
    ids = np.arange(day * num_rows, (day + 1) * num_rows)
    again = rng.random(num_rows) < 0.04
    ids = np.where(again & (day > 0), ids - num_rows * rng.integers(1, max(day, 1) + 1, num_rows), ids)
    good = rng.random(num_rows) < 0.98
    planned_at = datetime.datetime(2025, 10, 1, tzinfo=datetime.UTC) + datetime.timedelta(days=day)
    text, when = pa.string(), pa.repeat(pa.scalar(planned_at, TIME_TYPE), num_rows)
    columns = {
        "uri": pa.array([f"s3://bucket/videos/camera-{i % 97:02d}/2026/{i:09d}.mp4" for i in ids]),
        "etag": pa.array([f"{x:032x}" for x in rng.integers(0, 2**63, num_rows)]),
        "size_bytes": pa.array(rng.integers(10**5, 10**7, num_rows)),
        "status": pa.array(np.where(good, "ok", "corrupt"), text),
        "attempts": pa.array(np.ones(num_rows), pa.int32()),
        "label": pa.array(_LABELS[rng.zipf(1.4, num_rows) % len(_LABELS)], text, mask=~good),
        "score": pa.array(rng.random(num_rows).astype(np.float32), mask=~good),
        "top_k": _top_k(num_rows, rng),
        "duration_seconds": pa.array(rng.random(num_rows) * 60),
        "decode_seconds": pa.array(rng.random(num_rows)),
        "model": pa.repeat("s3://bucket/models/videomae", num_rows),
        "result_key": pa.repeat("0123456789abcdef" * 2, num_rows),
        "run_id": pa.repeat(f"r{day:04d}", num_rows),
        "scored_at": when,
        "planned_at": when,
    }
    none = {field.name: pa.nulls(num_rows, field.type) for field in PREDICTION_SCHEMA}
    return pa.table(none | columns).cast(PREDICTION_SCHEMA)


def _top_k(num_rows: int, rng: np.random.Generator) -> pa.Array:
    labels = pa.array(_LABELS[rng.integers(0, len(_LABELS), num_rows * _TOP_K)])
    entries = pa.StructArray.from_arrays([labels, pa.array(rng.random(num_rows * _TOP_K))], ["label", "score"])
    offsets = pa.array(np.arange(0, len(entries) + 1, _TOP_K, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, entries).cast(TOP_K_TYPE)


def write_year(folder: Path, *, num_runs: int, num_rows: int, rows_per_part: int) -> None:
    """An output of so many runs."""
    rng = np.random.default_rng(0)
    for day in range(num_runs):
        table = night(day, num_rows, rng)
        for shard, start in enumerate(range(0, num_rows, rows_per_part)):
            path = folder / part_path(f"r{day:04d}", shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(parquet_bytes(table.slice(start, rows_per_part), {}))
        marker = folder / run_file(f"r{day:04d}", "_SUCCESS")
        marker.parent.mkdir(parents=True)
        marker.touch()


def measure(folder: Path, sql: str) -> tuple[float, int, str]:
    """Seconds of the whole command, its peak memory in MiB, and what it prints."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, str(folder), sql]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return time.perf_counter() - started, int(done.stderr.split()[-1]), done.stdout


def _print_answers(output: Path) -> None:
    print("| question | seconds | peak MiB |\n|---|---|---|")
    for name, sql in QUESTIONS.items():
        seconds, peak, _ = measure(output, sql)
        print(f"| {name} | {seconds:.1f} | {peak:,} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the output, ask, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--rows", type=int, default=25_000, help="of each run")
    parser.add_argument("--rows-per-part", type=int, default=4_000)
    parser.add_argument("--compact", action="store_true", help="ask again after vidray compact")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="vidray-benchmark-") as folder:
        output = Path(folder)
        write_year(output, num_runs=args.runs, num_rows=args.rows, rows_per_part=args.rows_per_part)
        _print_answers(output)
        if args.compact:
            started = time.perf_counter()
            print(f"\n{compact(CompactConfig(output=folder))} in {time.perf_counter() - started:.0f} s\n")
            _print_answers(output)


if __name__ == "__main__":
    main()
