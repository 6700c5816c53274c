"""The ceiling: the same model on clips that are in memory already, in the plainest loop of torch there is.

python benchmarks/engines/train_memory.py --videos FOLDER --model FOLDER --output FILE --num-clips 960
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from train_common import BATCH_SIZE, MARK_EVERY_STEPS, Marks, parse_job

from tests.support.checkpoints import IMAGENET_MEAN, IMAGENET_STD
from vidray.training.loop.step_timer import StepTimer


def main() -> None:
    """Train on one batch again and again, as many steps as there are to be."""
    from transformers import AutoModelForVideoClassification

    job = parse_job(__doc__)
    model = AutoModelForVideoClassification.from_pretrained(job.model)
    step, clock = make_step(model, device=torch.device("cpu"), batch_size=BATCH_SIZE)
    marks = Marks()
    for number in range(1, job.num_clips // BATCH_SIZE + 1):
        step()
        if number % MARK_EVERY_STEPS == 0:
            seconds = clock.read()
            marks.add_phases({name: seconds[name] for name in ("forward_backward", "optimizer")})
            marks.add(number * BATCH_SIZE)
    marks.write(job.output)


def make_step(
    model: nn.Module, *, device: torch.device, batch_size: int, bf16: bool = False
) -> tuple[Callable[[], Any], StepTimer]:
    """A training step on resident uint8 clips, and the clock that it runs on.

    What ours does to a batch is done here too: normalising, clipping of the gradient, AdamW.
    """
    model.train().to(device)
    config: Any = model.config
    shape = (batch_size, config.num_frames, 3, config.image_size, config.image_size)
    clips_NTCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.arange(batch_size, device=device) % config.num_labels
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    clock = StepTimer(device)

    def step() -> None:
        with clock.phase("forward_backward"):
            pixels = (clips_NTCHW.float() / 255 - mean) / std
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(pixel_values=pixels).logits
            nn.functional.cross_entropy(logits.float(), labels).backward()
        with clock.phase("optimizer"):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step, clock


if __name__ == "__main__":
    main()
