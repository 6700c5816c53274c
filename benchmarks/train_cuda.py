"""What a GPU gives in training: steps on resident clips, and ``vidray train`` itself, with VideoMAE-B in bf16.

``python benchmarks/train.py --device cuda`` calls this. The network is made from the family's default configuration,
which is VideoMAE-B (86 million parameters, 16 frames of 224 × 224), with random weights: speed does not depend on them.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent / "engines"))

from train_memory import make_step

from benchmarks.cuda import VIDEOMAE_B, matmul_flops, seconds_per_call
from benchmarks.workload import guide_config
from tests.support.checkpoints import make_videomae
from vidray.training.job import train

BATCH_SIZES = (8, 32)
_JOB_STEPS = 60


def measure_cuda(
    folder: Path,
    videos: Path,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    sizes: dict[str, Any] = VIDEOMAE_B,
    device: str = "cuda",
    precision: str = "bf16",
    num_steps: int = _JOB_STEPS,
) -> list[dict[str, float]]:
    """Measures and prints a row for each batch size, without and with gradient checkpointing.

    ``sizes``, ``device`` and ``precision`` are for trying this out where there is no GPU.
    """
    labels = sorted(path.name for path in (videos / "train").iterdir())
    model = make_videomae(folder / "model-b", labels=labels, initializer_range=0.02, **sizes)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peak = matmul_flops(torch.device(device), dtype=dtype)
    print(f"matrix peak {peak / 1e12:.1f} TFLOP/s, {precision}; ours is vidray train, after the first 10 steps")
    print(
        f"{'batch':>5} {'checkpointing':13} {'resident ms':>11} {'of peak':>8} {'ours ms':>8} {'of peak':>8} "
        f"{'of resident':>11} {'data wait':>9} {'peak GiB':>8}"
    )
    rows = []
    for batch_size in batch_sizes:
        for checkpointing in (False, True):
            row = resident(model, batch_size, checkpointing=checkpointing, device=device, precision=precision)
            row |= job(
                folder, videos, model, batch_size,
                checkpointing=checkpointing, device=device, precision=precision, num_steps=num_steps,
            )  # fmt: skip
            rows.append(row | {"batch_size": batch_size, "checkpointing": float(checkpointing)})
            print_row(rows[-1], peak=peak)
    return rows


def print_row(row: dict[str, float], *, peak: float) -> None:
    """One line of the table. The share of the peak counts the multiplications of forward and backward, not those that
    checkpointing does again."""
    resident_seconds, job_seconds = row["resident_seconds"], row["job_seconds"]
    print(
        f"{row['batch_size']:5} {'yes' if row['checkpointing'] else 'no':13} {1000 * resident_seconds:11.1f} "
        f"{row['flops'] / resident_seconds / peak:8.1%} {1000 * job_seconds:8.1f} "
        f"{row['flops'] / job_seconds / peak:8.1%} {resident_seconds / job_seconds:11.3f} {row['data_wait']:9.1%} "
        f"{row['peak_bytes'] / 2**30:8.2f}",
        flush=True,
    )


def resident(model: Path, batch_size: int, *, checkpointing: bool, device: str, precision: str) -> dict[str, float]:
    """Seconds of a step on clips that are on the device, its peak memory, and the flops of a step."""
    from transformers import AutoModelForVideoClassification

    network = AutoModelForVideoClassification.from_pretrained(model)
    flops = flops_per_step(network, batch_size)
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    place = torch.device(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = make_step(network, device=place, batch_size=batch_size, bf16=precision == "bf16")
    seconds = seconds_per_call(step, place)
    peak_bytes = float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0
    del step, network
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {"resident_seconds": seconds, "peak_bytes": peak_bytes, "flops": flops}


def flops_per_step(network: Any, batch_size: int) -> float:
    """Of forward and backward, counted by their operators for one clip."""
    config = network.config
    network.train()
    pixels = torch.zeros(1, config.num_frames, 3, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter:
        network(pixel_values=pixels).logits.sum().backward()
    network.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) * batch_size


def job(
    folder: Path, videos: Path, model: Path, batch_size: int,
    *, checkpointing: bool, device: str, precision: str, num_steps: int,
) -> dict[str, float]:  # fmt: skip
    """Seconds of a step of ``vidray train``, and the share of them in which the device waited for data."""
    output = folder / f"job-{batch_size}-{checkpointing}"
    config = guide_config(
        videos,
        model=model,
        output=output,
        num_clips=num_steps * batch_size,
        batch_size=batch_size,
        gradient_checkpointing=checkpointing,
        device=device,
        precision=precision,
    )
    train(config, log=lambda text: None)
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in lines if row["kind"] == "train"][1:]
    seconds = sum(row["total_seconds"] for row in rows)
    return {
        "job_seconds": seconds / sum(row["num_steps"] for row in rows),
        "data_wait": sum(row["data_wait_seconds"] for row in rows) / seconds,
    }
