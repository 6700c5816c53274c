"""What a GPU gives: the network alone, decoding alone, and the whole job, with VideoMAE-B in bf16.

``python benchmarks/score.py --device cuda`` calls this. The network is made from the family's default configuration,
which is VideoMAE-B (86 million parameters, 16 frames of 224 × 224), with random weights: speed does not depend on them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.checkpoints import make_videomae
from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vidray.models.predict import forward_views
from vidray.scoring.config import ScoreConfig
from vidray.scoring.predictor import DTYPES, default_batch_size, load_network
from vidray.types import Limits, ViewConfig
from vidray.video.views import decode_views

VIDEOMAE_B: dict[str, Any] = {"num_frames": 16, "size": 224, "patch_size": 16, "hidden_size": 768, "num_layers": 12}
_MATRIX_SIZE = 8192
_BATCHES_PER_CALL = 8
MEASURE_SECONDS = 5.0
"""How long each rate is measured for, at least."""


def measure_cuda(
    folder: Path,
    clips: list[Path],
    *,
    num_videos: int,
    run_job: Callable[[Path], float],
    sizes: dict[str, Any] = VIDEOMAE_B,
    device: str = "cuda",
    precision: str = "bf16",
) -> dict[str, float]:
    """Measures and prints the three; ``run_job(model)`` gives the marginal videos/s of whole jobs.

    ``sizes`` and ``device`` are for trying this out where there is no GPU.
    """
    model = make_videomae(folder / "model-b", initializer_range=0.02, **sizes)
    checkpoint = read_checkpoint(str(model))
    view = ScoreConfig(source=("-",), model="-", output="-", views="1x1", span="full").effective_view(
        checkpoint.meta.view
    )
    peak = matmul_flops(torch.device(device), dtype=DTYPES[precision])
    rate, flops = network_alone(checkpoint, view, device=torch.device(device), dtype=DTYPES[precision])
    rates = {"network": rate, "decode": decode_rate(clips, view, num_videos=num_videos)}
    if device == "cuda":
        torch.cuda.empty_cache()  # the job's own network wants the memory
    rates["job"] = run_job(model)
    ceiling = min(rates["network"], rates["decode"])
    print(f"matrix peak, {_MATRIX_SIZE} cubed      {peak / 1e12:9.1f} TFLOP/s, {precision}")
    print(f"network alone, resident    {rates['network']:9.1f} clips/s = {rates['network'] * flops / peak:.0%} of it")
    print(f"decode alone, {os.cpu_count():3} cores    {rates['decode']:9.1f} videos/s")
    print(f"whole job, marginal        {rates['job']:9.1f} videos/s = {rates['job'] / ceiling:.2f} of the smaller")
    return rates


def network_alone(
    checkpoint: Checkpoint, view: ViewConfig, *, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Clips per second of the network with normalising, on views that are on the device already; flops of a clip."""
    network = load_network(checkpoint, dtype=dtype, device=device)
    batch_size = default_batch_size(view, device)
    views_NTHWC = torch.randint(0, 256, (batch_size, *view.views_shape[1:]), dtype=torch.uint8, device=device)

    def forward(views_NTHWC: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return forward_views(network, views_NTHWC, family=checkpoint.family, view=view, dtype=dtype)

    with FlopCounterMode(display=False) as counter:
        forward(views_NTHWC[:1])
    seconds = seconds_per_call(lambda: forward(views_NTHWC), device)
    return batch_size / seconds, float(counter.get_total_flops())


def matmul_flops(device: torch.device, *, dtype: torch.dtype, size: int | None = None) -> float:
    """Flop/s of a large square matrix product: what the device can do at best."""
    size = size or (_MATRIX_SIZE if device.type == "cuda" else 512)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = seconds_per_call(lambda: left @ right, device)
    return 2 * size**3 / seconds


def seconds_per_call(work: Callable[[], object], device: torch.device) -> float:
    """Mean time of a call, after a warm-up; the device is waited for at the end of a series, not after each call."""
    for _ in range(3):
        work()
    synchronise(device)
    num_calls, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < MEASURE_SECONDS or num_calls == 0:
        for _ in range(_BATCHES_PER_CALL):
            work()
        synchronise(device)
        num_calls += _BATCHES_PER_CALL
    return seconds / num_calls


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode_rate(clips: list[Path], view: ViewConfig, *, num_videos: int) -> float:
    """Videos per second of decoding alone, a process on every core."""
    num_processes = len(os.sched_getaffinity(0))
    paths = [clips[index % len(clips)] for index in range(num_videos)]
    # Spawned: a process that holds a CUDA context must not be forked.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_decode, paths[: 4 * num_processes], [view] * 4 * num_processes))  # starts them all
        started = time.perf_counter()
        list(pool.map(_decode, paths, [view] * num_videos, chunksize=4))
        return num_videos / (time.perf_counter() - started)


def _decode(path: Path, view: ViewConfig) -> int:
    views, _ = decode_views(path.read_bytes(), view=view, limits=Limits())
    return int(np.prod(views.shape))
