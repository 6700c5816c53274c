"""Whole score runs of Vidray, of three other ways to do the job, and of the limit, on the same videos and checkpoint.

    python benchmarks/score.py --videos /path/to/clips       # copies of these clips, in turn
    python benchmarks/score.py                               # generated clips like those of UCF101
    python benchmarks/score.py --engines ours-local limit --sizes 200 600 --repeats 5
    python benchmarks/score.py --device cuda                 # the model's size of VideoMAE-B, on one GPU

Every run is a fresh process with an output of its own, from the command to its exit; 16 frames over the whole video
for all. The *marginal* rate comes from the difference of the largest and the smallest size, so that start-up neither
hides in it nor flatters it. Engines take turns, and medians over the rounds are printed: where other work disturbs the
machine, it disturbs all alike. The limit is Vidray's decode and forward with no engine, one process per core.
``ours-local`` is ``vidray score --runner local``, ``ours-ray`` ``--runner ray``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.workload import make_bucket, prepare_clips

ROOT = Path(__file__).resolve().parent.parent
FULL_SIZE = 3000


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One way to do the job."""

    script: str | None = None
    """File in benchmarks/engines; None: Vidray itself."""
    runner: str = "local"
    """Vidray's own, local or ray."""
    precision: str = "fp32"
    device: str = "cpu"

    def command(self, *, videos: Path, model: Path, output: Path) -> list[str]:
        """What is run."""
        places: dict[str, object] = {"--model": model, "--output": output, "--precision": self.precision}
        if self.script is not None:
            program, places = [str(ROOT / "benchmarks" / "engines" / self.script)], {"--videos": videos, **places}
        else:
            program = ["-m", "vidray.cli.main", "score", "--views", "1x1", "--span", "full"]
            places = {"--source": videos, **places, "--device": self.device, "--runner": self.runner}
        return [sys.executable, *program, *(str(word) for pair in places.items() for word in pair)]


ENGINES = {
    "limit": Engine(script="limit.py"),
    "ours-local": Engine(),
    "ours-ray": Engine(runner="ray"),
    "pipeline": Engine(script="hf_pipeline.py"),
    "ray": Engine(script="ray_data.py"),
    "daft": Engine(script="daft_udf.py"),
    "limit-bf16": Engine(script="limit.py", precision="bf16"),
    "ours-local-bf16": Engine(precision="bf16"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One whole process."""

    seconds: float
    """From the command to its exit."""
    success_seconds: float | None
    """From the command until ``_SUCCESS`` is there, where there is such a thing."""
    labels: dict[str, str]
    """File name to best label, as read from the Parquet that it left."""


Runs = dict[tuple[str, int], list[Run]]
"""By engine and number of videos, in the order of the rounds."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, measures, prints."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="vidray-benchmark-", dir=args.work) as name:
        folder = Path(name)
        clips = prepare_clips(folder / "clips", source=args.videos)
        if args.device == "cuda":
            from benchmarks.cuda import measure_cuda

            small, large = min(args.sizes), max(args.sizes)
            measure_cuda(
                folder,
                clips,
                num_videos=large,
                run_job=lambda model: job_rate(
                    folder, clips, model,
                    small=small, large=large, repeats=args.repeats, settle_seconds=args.settle_seconds,
                ),
            )  # fmt: skip
            return
        sizes = sorted({*args.sizes, *([FULL_SIZE] if args.full else [])})
        runs = measure(
            folder, clips,
            engines=args.engines, sizes=sizes, repeats=args.repeats, settle_seconds=args.settle_seconds,
        )  # fmt: skip
    report(runs, args.engines, sizes)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of clips; without it clips are generated")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 200, 600], help="numbers of videos")
    parser.add_argument("--full", action="store_true", help=f"also {FULL_SIZE:,} videos: minutes for each engine")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which medians are printed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, help="where links, checkpoint and outputs go (default: the system's)")
    parser.add_argument(
        "--settle-seconds",
        type=float,
        default=5.0,
        help="pause before each run: processes that Ray leaves behind end a little later, and would take their time "
        "from the next engine (default 5)",
    )
    return parser.parse_args(arguments)


def measure(
    folder: Path, clips: list[Path], *, engines: list[str], sizes: list[int], repeats: int, settle_seconds: float
) -> Runs:
    """Runs every engine at every size, in turn; says so on stderr as it goes."""
    from tests.support.checkpoints import make_benchmark_videomae

    model = make_benchmark_videomae(folder / "model")
    buckets = {size: make_bucket(folder / f"videos-{size}", clips, num_videos=size) for size in sizes}
    runs: Runs = defaultdict(list)
    for number in range(repeats):
        for size in sizes:
            for name in engines:
                output = folder / f"{name}-{size}-{number}"
                command = ENGINES[name].command(videos=buckets[size], model=model, output=output)
                time.sleep(settle_seconds)
                run = run_once(command, output, num_videos=size)
                runs[name, size].append(run)
                line = f"round {number + 1}: {name:15} {size:5} videos {run.seconds:7.2f} s"
                print(line, file=sys.stderr, flush=True)
    return runs


def job_rate(
    folder: Path,
    clips: list[Path],
    model: Path,
    *,
    small: int,
    large: int,
    repeats: int,
    settle_seconds: float,
    engine: Engine = Engine(precision="bf16", device="cuda"),
) -> float:
    """Marginal videos per second of whole jobs of Vidray on a GPU; median over rounds."""
    runs: Runs = defaultdict(list)
    for size in (small, large):
        bucket = make_bucket(folder / f"videos-{size}", clips, num_videos=size)
        for number in range(repeats):
            output = folder / f"job-{size}-{number}"
            command = engine.command(videos=bucket, model=model, output=output)
            time.sleep(settle_seconds)
            runs["job", size].append(run_once(command, output, num_videos=size))
    return statistics.median(marginal_rates(runs, "job", small=small, large=large))


def run_once(command: list[str], output: Path, *, num_videos: int) -> Run:
    """Runs one process to its end. Raises SystemExit if it fails or left another number of videos than it was given."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryFile() as log:
        started, started_at = time.perf_counter(), time.time()
        # Nothing looks on meanwhile: that would take time from what is measured.
        process = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, check=False)
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            log.seek(0)
            text = log.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(command)}\nexited with code {process.returncode}:\n{text}")
    labels = read_labels(output)
    if len(labels) != num_videos:
        raise SystemExit(f"{' '.join(command)}\nleft {len(labels)} labelled videos, wanted {num_videos}")
    written_at = [marker.stat().st_mtime for marker in output.glob("_runs/*/_SUCCESS")]
    return Run(seconds=seconds, success_seconds=written_at[0] - started_at if written_at else None, labels=labels)


def read_labels(output: Path) -> dict[str, str]:
    """File name to best label of every row that an engine wrote."""
    folder = output / "predictions" if (output / "predictions").exists() else output
    rows = pyarrow.dataset.dataset(folder, format="parquet").to_table(columns=["uri", "label"])
    names = [Path(uri).name for uri in rows["uri"].to_pylist()]
    return {name: label for name, label in zip(names, rows["label"].to_pylist(), strict=True) if label is not None}


def report(runs: Runs, engines: list[str], sizes: list[int]) -> None:
    """Prints the tables."""
    if len(sizes) > 1:
        print_rates(runs, engines, small=_small(sizes), large=_large(sizes))
    print_whole(runs, engines, sizes)


def _small(sizes: list[int]) -> int:
    return 200 if 200 in sizes and max(sizes) > 200 else sizes[0]


def _large(sizes: list[int]) -> int:
    return 600 if 600 in sizes and min(sizes) < 600 else sizes[-1]


def print_rates(runs: Runs, engines: list[str], *, small: int, large: int) -> None:
    """Marginal rates, their ratios within each round, and start-up."""
    rates = {name: marginal_rates(runs, name, small=small, large=large) for name in engines}
    print(f"\nMarginal, from the difference of {large} and {small} videos; ratios are medians over rounds")
    print(f"{'engine':15} {'videos/s':>9} {'of limit':>9} {'ours-local':>11} {'start-up s':>11} {'labels as':>10}")
    for name in engines:
        start_up = [
            run.seconds - small / rate for run, rate in zip(runs[name, small], rates[name], strict=True) if rate > 0
        ]
        print(
            f"{name:15} {statistics.median(rates[name]):9.1f} {_ratio(rates, name, 'limit'):>9} "
            f"{_ratio(rates, 'ours-local', name):>11} {statistics.median(start_up or [0]):11.1f} "
            f"{_agreement(runs, name, large):>10}"
        )


def marginal_rates(runs: Runs, name: str, *, small: int, large: int) -> list[float]:
    """Videos per second beyond the first ``small``, for each round."""
    pairs = zip(runs[name, small], runs[name, large], strict=True)
    return [(large - small) / max(long.seconds - short.seconds, 1e-9) for short, long in pairs]


def _ratio(rates: dict[str, list[float]], name: str, other: str) -> str:
    """Median over rounds of one engine's rate over another's; the limit is that of the same precision."""
    if other == "limit" and name.endswith("-bf16"):
        other = "limit-bf16"
    if name not in rates or other not in rates:
        return "-"
    return f"{statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True)):.2f} x"


def _agreement(runs: Runs, name: str, size: int) -> str:
    """Share of videos with the limit's best label: nobody is fast by doing something else."""
    if ("limit", size) not in runs:
        return "-"
    mine, limits = runs[name, size][0].labels, runs["limit", size][0].labels
    return f"{sum(mine.get(key) == label for key, label in limits.items()) / len(limits):.0%}"


def print_whole(runs: Runs, engines: list[str], sizes: list[int]) -> None:
    """Seconds of whole jobs."""
    print("\nWhole job in seconds, from the command to its exit (to _SUCCESS in brackets); medians over rounds")
    print(f"{'engine':15} " + " ".join(f"{size:>15,}" for size in sizes))
    for name in engines:
        print(f"{name:15} " + " ".join(f"{_whole(runs[name, size]):>15}" for size in sizes))


def _whole(runs: list[Run]) -> str:
    text = f"{statistics.median(run.seconds for run in runs):.1f}"
    successes = [run.success_seconds for run in runs if run.success_seconds is not None]
    return f"{text} ({statistics.median(successes):.1f})" if successes else text


if __name__ == "__main__":
    main()
