"""Training steps of Vidray, of the same model on data in memory, and of Transformers' guide, on the same clips.

    python benchmarks/train.py --videos /path/to/clips        # copies of these clips, a label for each
    python benchmarks/train.py                                # generated clips like those of UCF101
    python benchmarks/train.py --cases model --engines ours ceiling --repeats 3
    python benchmarks/train.py --size 32 --batch-size 2 --num-videos 8 --num-clips 8 --mark-every 1 --repeats 1  # a try
    python benchmarks/train.py --device cuda                  # VideoMAE-B in bf16, on one GPU

Three cases: a network that takes much longer than decoding (*model*), one that takes next to nothing (*decode*), and
none at all (*ingest*). Batches of 8 clips of 16 × 224² at every fourth frame, flipped and cropped as the guide does,
fp32, AdamW. Each run is a fresh process; rates and CPU time are those of the steady state, from the first mark (the
tenth step) to the last. Engines take turns, and medians over the rounds are printed, ratios being taken within each
round: where other work disturbs the machine, it disturbs all alike. All engines have the whole machine, so ratios of
rates are ratios per core.

- ours: ``vidray train``. ours-ray: the same through Ray Train and Ray tasks.
- ceiling: a plain torch loop on one batch that is in memory.
- guide: transformers.Trainer with PyTorchVideo's Ucf101, as the guide has it, without worker processes.
- guide-workers: the same with a DataLoader worker on each core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.workload import make_labelled_bucket, prepare_clips

ROOT = Path(__file__).resolve().parent.parent
NUM_VIDEOS = 240
NUM_FRAMES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One way to train."""

    script: str
    """File in benchmarks/engines."""
    extra: str | None = None


_CORES = len(os.sched_getaffinity(0))
ENGINES = {
    "ceiling": Engine(script="train_memory.py"),
    "ours": Engine(script="train_ours.py"),
    "ours-ray": Engine(script="train_ours.py", extra="ray"),
    "guide": Engine(script="train_guide.py"),
    "guide-workers": Engine(script="train_guide.py", extra=str(_CORES)),
}
INGEST = {
    "ours": Engine(script="train_ingest.py", extra="ours"),
    "guide-workers": Engine(script="train_ingest.py", extra="guide"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A network, and how many clips it is trained on if the command line does not say."""

    sizes: dict[str, Any]
    num_clips: int
    slow_clips: int
    """Of the guide's engines."""
    engines: dict[str, Engine] = field(default_factory=lambda: ENGINES)


_NEXT_TO_NOTHING = {"patch_size": 32, "hidden_size": 32, "num_layers": 1}
CASES = {
    "model": Case(
        sizes={"patch_size": 16, "hidden_size": 192, "num_layers": 6},
        num_clips=NUM_VIDEOS,
        slow_clips=NUM_VIDEOS,
    ),
    "decode": Case(sizes=_NEXT_TO_NOTHING, num_clips=6 * NUM_VIDEOS, slow_clips=NUM_VIDEOS),
    "ingest": Case(sizes=_NEXT_TO_NOTHING, num_clips=8 * NUM_VIDEOS, slow_clips=NUM_VIDEOS, engines=INGEST),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """One process between its first and its last mark."""

    clips_per_second: float
    cpu_ms_per_clip: float
    phases: dict[str, float]
    """Share of the time, by phase."""


Runs = dict[str, list[Steady]]
"""By engine, in the order of the rounds."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, measures, prints."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="vidray-benchmark-", dir=args.work) as name:
        folder = Path(name)
        clips = prepare_clips(folder / "clips", source=args.videos)
        videos = make_labelled_bucket(folder / "videos", clips, num_videos=args.num_videos)
        if args.device == "cuda":
            from benchmarks.train_cuda import measure_cuda

            measure_cuda(folder, videos)
            return
        for case in args.cases:
            report(case, measure(folder, videos, case, args), batch_size=args.batch_size)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of clips; without it clips are generated")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which medians are printed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, help="where links, checkpoint and outputs go (default: the system's)")
    parser.add_argument("--num-videos", type=int, default=NUM_VIDEOS, help="distinct files (default %(default)s)")
    parser.add_argument("--num-clips", type=int, help="to train on; by default 1 to 8 times 240, by case and engine")
    parser.add_argument("--batch-size", type=int, default=8, help="clips per step (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of a clip, a multiple of 32 (default %(default)s)")
    parser.add_argument("--mark-every", type=int, default=10, help="steps between two marks (default %(default)s)")
    return parser.parse_args(arguments)


def measure(folder: Path, videos: Path, name: str, args: argparse.Namespace) -> Runs:
    """Runs every engine of a case in turn; says so on stderr as it goes."""
    from tests.support.checkpoints import make_videomae

    case = CASES[name]
    labels = sorted(path.name for path in (videos / "train").iterdir())
    model = make_videomae(
        folder / f"model-{name}",
        labels=labels, num_frames=NUM_FRAMES, size=args.size, initializer_range=0.02, **case.sizes,
    )  # fmt: skip
    runs: Runs = defaultdict(list)
    for number in range(args.repeats):
        for engine in (engine for engine in args.engines if engine in case.engines):
            num_clips = args.num_clips or (case.slow_clips if engine.startswith("guide") else case.num_clips)
            flags = {
                "--videos": videos,
                "--model": model,
                "--output": folder / "marks.json",
                "--num-clips": num_clips,
                "--batch-size": args.batch_size,
                "--mark-every": args.mark_every,
            }
            run = run_once(case.engines[engine], flags)
            runs[engine].append(run)
            print(
                f"round {number + 1}: {name:7} {engine:13} {run.clips_per_second:7.2f} clips/s "
                f"{run.cpu_ms_per_clip:8.1f} ms of CPU per clip",
                file=sys.stderr,
                flush=True,
            )
    return runs


def run_once(engine: Engine, flags: dict[str, Any]) -> Steady:
    """Runs one process to its end. Raises SystemExit if it fails."""
    if engine.extra is not None:
        flags = flags | {"--extra": engine.extra}
    words = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, str(ROOT / "benchmarks" / "engines" / engine.script), *words]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        text = (done.stdout + done.stderr)[-3000:]
        raise SystemExit(f"{' '.join(command)}\nexited with code {done.returncode}:\n{text}")
    return steady(json.loads(flags["--output"].read_text()))


def steady(found: dict[str, Any]) -> Steady:
    """What an engine's marks say. Raises ValueError if there are not two."""
    if len(found["marks"]) < 2:
        raise ValueError(
            f"two marks are needed, got {len(found['marks'])}: raise --num-clips, or lower --batch-size or --mark-every"
        )
    first, last = found["marks"][0], found["marks"][-1]
    num_clips, seconds = last["clips"] - first["clips"], last["seconds"] - first["seconds"]
    return Steady(
        clips_per_second=num_clips / seconds,
        cpu_ms_per_clip=1000 * (last["cpu_seconds"] - first["cpu_seconds"]) / num_clips,
        phases={name: value / seconds for name, value in found["phases"].items()},
    )


def report(name: str, runs: Runs, *, batch_size: int) -> None:
    """Prints a case's table."""
    print(f"\n{name}: medians over {max(map(len, runs.values()))} rounds")
    print(
        f"{'engine':13} {'clips/s':>8} {'step ms':>8} {'of ceiling':>10} {'ours is':>9} {'CPU ms/clip':>11} "
        f"{'ours, by CPU':>12}   where the time goes"
    )
    for engine, found in runs.items():
        rate = statistics.median(run.clips_per_second for run in found)
        cpu = statistics.median(run.cpu_ms_per_clip for run in found)
        print(
            f"{engine:13} {rate:8.2f} {1000 * batch_size / rate:8.0f} {ratio(runs, engine, 'ceiling'):>10} "
            f"{ratio(runs, 'ours', engine):>9} {cpu:11.1f} {cpu_ratio(runs, engine):>12}   {where(found)}"
        )


def ratio(runs: Runs, name: str, other: str) -> str:
    """Median over rounds of one engine's rate over another's."""
    if name not in runs or other not in runs:
        return "-"
    pairs = zip(runs[name], runs[other], strict=True)
    return f"{statistics.median(a.clips_per_second / b.clips_per_second for a, b in pairs):.3f} x"


def cpu_ratio(runs: Runs, name: str) -> str:
    """Median over rounds of the clips that ours makes in a second of CPU time, over another's."""
    if "ours" not in runs or not all(run.cpu_ms_per_clip for run in runs["ours"]):  # CPU time has steps of 10 ms
        return "-"
    pairs = zip(runs[name], runs["ours"], strict=True)
    return f"{statistics.median(a.cpu_ms_per_clip / b.cpu_ms_per_clip for a, b in pairs):.2f} x"


def where(found: list[Steady]) -> str:
    """Median share of each phase."""
    names = found[0].phases
    return ", ".join(f"{name} {statistics.median(run.phases[name] for run in found):.1%}" for name in names)


if __name__ == "__main__":
    main()
