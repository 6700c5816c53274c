"""Clips per second of each family's base variant on this machine: eager, and as the Predictor runs it.

    python benchmarks/models.py                                   # all families, as a Markdown table
    python benchmarks/models.py --families x3d_m movinet-a0       # some of them
    python benchmarks/models.py --precision fp32 bf16             # the Predictor in both
    python benchmarks/models.py --device cuda --compile           # on a GPU, compiled too
    python benchmarks/models.py --tiny --families x3d_m --seconds 0 --calls 1   # a try

*eager* is what a user of Transformers writes: a float32 model in eval mode under ``no_grad``, and a loop over batches
that are normalised in float32. *Predictor* is what a score job runs. Both start from the same uint8 views in memory,
put as many of them into a forward, and have as many threads; the Predictor's lanes, one thread each, share them out.
Calls take turns. A rate is that of the best call; a ratio is the median of the ratios within each turn, so that other
work on the machine slows down both alike. Weights are random, sizes are the published ones.

Multiply-adds are counted by ``torch.utils.flop_counter`` (convolutions and matrix products; half its count). The share
is of the rate that a large matrix product reached here, in the precision that the column ran in.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support import checkpoints
from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vidray.checkpoints.write import write_checkpoint
from vidray.cpu_tuning import keep_freed_memory
from vidray.models.families import FAMILIES, Family
from vidray.models.movinet.variants import movinet_view
from vidray.models.pytorchvideo.variants import VARIANTS
from vidray.scoring.predictor import Predictor
from vidray.types import ViewConfig

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HUB: dict[str, tuple[str, dict[str, Any], ViewConfig]] = {
    "videomae": ("videomae", {"use_mean_pooling": True}, ViewConfig(num_frames=16, size=224, **IMAGENET)),
    "timesformer": ("timesformer", {}, ViewConfig(num_frames=8, size=224)),
    "vivit": ("vivit", {}, ViewConfig(num_frames=32, size=224)),
    "vjepa2": ("vjepa2", {"frames_per_clip": 16}, ViewConfig(num_frames=16, size=256, **IMAGENET)),
    "videoprism": ("videoprism_vision_model", {}, ViewConfig(num_frames=16, size=288)),
}
NAMES = [*HUB, "slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50", "slowfast_r50", "x3d_m"]
NAMES += ["mvit_base_16x4", "movinet-a0", "movinet-a2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A model to measure."""

    family: Family
    config: dict[str, Any]
    view: ViewConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints a line per model."""
    args = parse(arguments)
    keep_freed_memory()  # before threads have arenas of their own, as in a job, where the environment sees to it
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    peaks = {dtype: matmul_peak(device, dtype, is_tiny=args.tiny) for dtype in (torch.float32, torch.bfloat16)}
    rates = ", ".join(f"{str(dtype).removeprefix('torch.')} {peak / 1e9:.0f}" for dtype, peak in peaks.items())
    print(f"{device_name(device)}, {args.threads} threads; matrix product, G multiply-adds/s: {rates}\n")
    for number, name in enumerate(args.families):
        cells = measure(tiny_case_of(name) if args.tiny else case_of(name), args, device, peaks)
        if number == 0:
            print_row("model", *cells)
            print_row(*["---"] * (len(cells) + 1))
        print_row(name, *cells.values())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--device", default="cpu")
    precisions = ("auto", "fp32", "bf16", "fp16")
    parser.add_argument("--precision", nargs="+", choices=precisions, default=["auto"], help="of the Predictor")
    parser.add_argument("--compile", action="store_true", help="measure the compiled Predictor, too")
    parser.add_argument("--batch-size", type=int, help="clips per forward (default: the Predictor's)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each column for, at least (default 5)")
    parser.add_argument("--calls", type=int, default=5, help="of each column, at least (default 5)")
    parser.add_argument("--tiny", action="store_true", help="networks of a fraction of a second, to try this out")
    return parser.parse_args(arguments)


def print_row(*cells: str) -> None:
    """A line of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def case_of(name: str) -> Case:
    """The model with that name on the command line."""
    if name in HUB:
        model_type, config, view = HUB[name]
        return Case(family=FAMILIES[model_type], config=config, view=view)
    if name in VARIANTS:
        variant = VARIANTS[name]
        family = FAMILIES[f"pytorchvideo_{variant.architecture}"]
        return Case(family=family, config={"variant": name}, view=variant.view)
    family, config = FAMILIES["movinet"], {"variant": name.removeprefix("movinet-")}
    return Case(family=family, config=config, view=movinet_view(family.load_classes()[1](**config)))


def tiny_case_of(name: str) -> Case:
    """The same layers, narrow and on small clips, as the tests have them."""
    case = case_of(name)
    key = HUB[name][0] if name in HUB else name if name in VARIANTS else f"{name.replace('-', '_')}_base"
    model_type, changes = checkpoints.VARIANTS[key]
    config = checkpoints.TINY[model_type] | changes
    size, num_frames = config[case.family.size_key], config[case.family.num_frames_key]
    return Case(
        family=case.family, config=config, view=dataclasses.replace(case.view, size=size, num_frames=num_frames)
    )


def measure(
    case: Case, args: argparse.Namespace, device: torch.device, peaks: dict[torch.dtype, float]
) -> dict[str, str]:
    """One model's row: title of the column to what stands in it."""
    model_class, config_class = case.family.load_classes()
    model = model_class(config_class(**case.config, num_labels=400)).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(model, case.view, Path(folder) / "model")
        predictors = make_predictors(read_checkpoint(str(Path(folder) / "model")), args)
    batch = next(iter(predictors.values())).batch_size
    views = random_views(case.view, batch * (args.threads if device.type == "cpu" else 4))
    macs = multiply_adds(model.to(device), case, device)
    runs = [eager(model, case, views, batch=batch, device=device, num_threads=args.threads)]
    runs += [
        predict(predictor, views, num_threads=predictor.threads_per_batch or args.threads)
        for predictor in predictors.values()
    ]
    times = turn_seconds(runs, device, at_least=args.seconds, num_calls=args.calls)
    rates = [len(views) / min(taken) for taken in times]
    cells = {
        "input": f"{case.view.num_frames}×{case.view.size}²",
        "batch": str(batch),
        "GMAC": f"{macs / 1e9:.2f}",
        "eager fp32, clips/s": f"{rates[0]:.2f} ({rates[0] * macs / peaks[torch.float32]:.0%})",
    }
    for (title, predictor), rate, taken in zip(predictors.items(), rates[1:], times[1:], strict=True):
        share = rate * macs / peaks[torch.float32 if predictor.precision == "fp32" else torch.bfloat16]
        cells[f"{title}, clips/s"] = f"{rate:.2f} ({share:.0%})"
        ratios = [eager_seconds / seconds for eager_seconds, seconds in zip(times[0], taken, strict=True)]
        cells[f"{title} / eager"] = f"{statistics.median(ratios):.2f}"
    return cells


def make_predictors(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Predictor]:
    """By title: one for each precision; compiled ones behind, if asked for."""
    made = {}
    for is_compiled in (False, True) if args.compile else (False,):
        for precision in args.precision:
            predictor = Predictor(
                checkpoint,
                device=args.device,
                precision=precision,
                compile=is_compiled,
                batch_size=args.batch_size,
                num_threads=args.threads,
            )
            made[f"{'compiled' if is_compiled else 'Predictor'} {predictor.precision}"] = predictor
    return made


def eager(
    model: torch.nn.Module, case: Case, views: np.ndarray, *, batch: int, device: torch.device, num_threads: int
) -> Callable[[], object]:
    """The loop that a user of Transformers writes."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (case.view.mean, case.view.std))
    batches = torch.from_numpy(views).split(batch)

    @torch.no_grad()
    def run() -> object:
        torch.set_num_threads(num_threads)
        logits = []
        for batch_NTHWC in batches:
            pixels = (batch_NTHWC.to(device).permute(0, 1, 4, 2, 3).contiguous().float() / 255 - mean) / std
            logits.append(model(**{case.family.input_name: pixels}).logits)
        return torch.cat(logits).cpu()

    return run


def predict(predictor: Predictor, views: np.ndarray, *, num_threads: int) -> Callable[[], object]:
    """The same views as scoring runs them, each a video of its own.

    ``num_threads`` is what the Predictor has set for each of its lanes; the loop above has set another number since.
    """
    videos = list(views[:, None])

    def run() -> object:
        torch.set_num_threads(num_threads)
        scores = predictor.predict(videos)
        if error := next((score.error for score in scores if score.error), None):
            raise RuntimeError(error)
        return scores

    return run


def random_views(view: ViewConfig, num_views: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_views, *view.views_shape[1:]), dtype=np.uint8)


def multiply_adds(model: torch.nn.Module, case: Case, device: torch.device) -> float:
    """Of one clip."""
    view = case.view
    pixels = torch.zeros(1, view.num_frames, 3, view.size, view.size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**{case.family.input_name: pixels})
    return counter.get_total_flops() / 2


def matmul_peak(device: torch.device, dtype: torch.dtype, *, is_tiny: bool) -> float:
    """Multiply-adds per second of a large matrix product: the best of several."""
    size = 256 if is_tiny else 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = min(measured(lambda: left @ right, device) for _ in range(8))
    return size**3 / seconds


def turn_seconds(
    runs: list[Callable[[], object]], device: torch.device, *, at_least: float, num_calls: int
) -> list[list[float]]:
    """The seconds of each run's calls, of which the first of all are in the first turn, and so on.

    Args:
        at_least: seconds of each run, all its calls together.
        num_calls: of each run, at least.
    """
    for run in runs:
        measured(run, device)
    times: list[list[float]] = [[] for _ in runs]
    while len(times[0]) < num_calls or min(map(sum, times)) < at_least:
        for run, taken in zip(runs, times, strict=True):
            taken.append(measured(run, device))
    return times


def measured(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with all that it queued."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    )


if __name__ == "__main__":
    main()
