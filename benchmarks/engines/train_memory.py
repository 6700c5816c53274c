"""The ceiling: the same model on clips that are in memory already, in the plainest loop of torch there is.

``python benchmarks/train.py --engines ceiling`` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from train_common import Marks, parse_job

from tests.support.checkpoints import IMAGENET_MEAN, IMAGENET_STD


def main() -> None:
    """Train on one batch again and again, as many steps as there are to be."""
    from transformers import AutoModelForVideoClassification

    job = parse_job(__doc__)
    model = AutoModelForVideoClassification.from_pretrained(job.model)
    step = make_step(model, device=torch.device("cpu"), batch_size=job.batch_size)
    marks = Marks()
    for number in range(1, job.num_steps + 1):
        marks.add_phases(step())
        if number % job.mark_every == 0:
            marks.add(number * job.batch_size)
    marks.write(job.output)


def make_step(
    model: nn.Module, *, device: torch.device, batch_size: int, bf16: bool = False
) -> Callable[[], dict[str, float]]:
    """A training step on resident uint8 clips, which returns its seconds by phase. (On a GPU, where work is only
    queued, they mean nothing.)

    What ours does to a batch is done here too: normalising, clipping of the gradient, AdamW.
    """
    model.train().to(device)
    config: Any = model.config
    shape = (batch_size, config.num_frames, 3, config.image_size, config.image_size)
    clips_NTCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.arange(batch_size, device=device) % config.num_labels
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)

    def step() -> dict[str, float]:
        started = time.perf_counter()
        pixels = (clips_NTCHW.float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(pixel_values=pixels).logits
        nn.functional.cross_entropy(logits.float(), labels).backward()
        forward_ended = time.perf_counter()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ended = time.perf_counter()
        return {"forward_backward": forward_ended - started, "optimizer": ended - forward_ended}

    return step


if __name__ == "__main__":
    main()
