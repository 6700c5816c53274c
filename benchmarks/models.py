"""Clips per second of each family's base variant on this machine: eager, and as the Predictor runs it.

    python benchmarks/models.py                                   # all families
    python benchmarks/models.py --families x3d_m movinet-a0       # some of them
    python benchmarks/models.py --device cuda --compile           # on a GPU, compiled too

*eager* is what a user of Transformers writes: a float32 model in eval mode under ``no_grad``, one batch of contiguous
pixels that are normalised already, default settings. *Predictor* starts from uint8 views and normalises them, too. Both
get the same number of clips per batch and as many threads. Weights are random, sizes are the published ones.

Multiply-adds are counted by ``torch.utils.flop_counter`` (convolutions and matrix products; half its count). The share
is of the rate that a large matrix product reached here, in the precision that the column ran in.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vidray.checkpoint import read_checkpoint
from vidray.convert import movinet_view, write_checkpoint
from vidray.models.families import FAMILIES, Family
from vidray.models.predict import normalise
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


def main() -> None:
    """Parses, measures, prints a line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of the Predictor"
    )
    parser.add_argument("--compile", action="store_true", help="measure the compiled Predictor, too")
    parser.add_argument("--batch-size", type=int, help="clips per forward (default: the Predictor's)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each column for, at least (default 5)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    peaks = {dtype: matmul_peak(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rates = ", ".join(f"{str(dtype).removeprefix('torch.')} {peak / 1e9:.0f}" for dtype, peak in peaks.items())
    print(f"{device_name(device)}, {torch.get_num_threads()} threads; matrix product, G multiply-adds/s: {rates}")
    print(f"{'model':16} {'input':12} {'batch':>5} {'GMAC':>8}  {'clips/s (share of the peak)':}")
    for name in args.families:
        print(line(name, case_of(name), args, device, peaks), flush=True)


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


def line(name: str, case: Case, args: argparse.Namespace, device: torch.device, peaks: dict[Any, float]) -> str:
    """One model's row."""
    model_class, config_class = case.family.load_classes()
    model = model_class(config_class(**case.config, num_labels=400)).eval()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(model, case.view, Path(folder) / "model")
        checkpoint = read_checkpoint(str(Path(folder) / "model"))
        options = {"device": args.device, "precision": args.precision, "batch_size": args.batch_size}
        predictors = {"Predictor": Predictor(checkpoint, **options)}
        if args.compile:
            predictors["compiled"] = Predictor(checkpoint, compile=True, **options)
    batch = predictors["Predictor"].batch_size
    views = random_views(case.view, batch)
    macs = multiply_adds(model.to(device), case, device)
    runs = {"eager fp32": (eager(model, case, views, device), peaks[torch.float32])}
    for title, predictor in predictors.items():
        peak = peaks[torch.float32 if predictor.precision == "fp32" else torch.bfloat16]
        runs[f"{title} {predictor.precision}"] = (predict(predictor, views), peak)
    seconds = best_seconds([run for run, _ in runs.values()], device, at_least=args.seconds)
    cells = [
        f"{title} {batch / best:.2f} ({batch / best * macs / peak:.0%})"
        for (title, (_, peak)), best in zip(runs.items(), seconds, strict=True)
    ]
    shape = f"{case.view.num_frames}×{case.view.size}²"
    return f"{name:16} {shape:12} {batch:5} {macs / 1e9:8.2f}  {'   '.join(cells)}"


def eager(model: torch.nn.Module, case: Case, views: np.ndarray, device: torch.device) -> Callable[[], object]:
    """One forward as a user of Transformers writes it."""
    pixels = normalise(torch.from_numpy(views), view=case.view).contiguous().to(device)

    @torch.no_grad()
    def run() -> object:
        return model(**{case.family.input_name: pixels})

    return run


def predict(predictor: Predictor, views: np.ndarray) -> Callable[[], object]:
    """One batch as scoring does it."""

    def run() -> object:
        (scores,) = predictor.predict([views])
        if scores.error:
            raise RuntimeError(scores.error)
        return scores

    return run


def random_views(view: ViewConfig, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, *view.views_shape[1:]), dtype=np.uint8)


def multiply_adds(model: torch.nn.Module, case: Case, device: torch.device) -> float:
    """Of one clip."""
    view = case.view
    pixels = torch.zeros(1, view.num_frames, 3, view.size, view.size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**{case.family.input_name: pixels})
    return counter.get_total_flops() / 2


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds per second of a large matrix product: the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = min(measured(lambda: left @ right, device) for _ in range(8))
    return size**3 / seconds


def best_seconds(runs: list[Callable[[], object]], device: torch.device, *, at_least: float) -> list[float]:
    """The shortest call of each. They take turns, so that a machine with other work is as busy for one as for all."""
    for run in runs:
        measured(run, device)
    times: list[list[float]] = [[] for _ in runs]
    while len(times[0]) < 3 or min(map(sum, times)) < at_least:
        for run, taken in zip(runs, times, strict=True):
            taken.append(measured(run, device))
    return [min(taken) for taken in times]


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
