"""Batches of training clips with no network behind them: ours (``--extra ours``) or the guide's (``--extra guide``).

``python benchmarks/train.py --cases ingest`` runs it.

Both may use all cores, one decoding worker on each.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from train_common import Marks, TrainJob, parse_job

from benchmarks.workload import guide_config


def main() -> None:
    """Take the batches and throw them away."""
    job = parse_job(__doc__)
    batches = {"ours": our_batches, "guide": guides_batches}[job.extra or "ours"](job)
    marks = Marks()
    for number, _ in enumerate(itertools.islice(batches, job.num_steps), 1):
        if number % job.mark_every == 0:
            marks.add(number * job.batch_size)
    marks.write(job.output)


def our_batches(job: TrainJob) -> Iterator[object]:
    """What the training loop is given, epoch after epoch."""
    from vidray.checkpoints.checkpoint import read_checkpoint
    from vidray.sources.labels import load_labelled
    from vidray.training.data.clip_source import make_clip_source
    from vidray.training.plan import label_source

    config = guide_config(
        job.videos, model=job.model, output=Path("unused"), num_clips=job.num_clips, batch_size=job.batch_size
    )
    table = load_labelled(label_source(config)).rows_of("train")
    view = config.view(read_checkpoint(config.model, require_head=False).view)
    clips = make_clip_source(table, config, rank=0, world_size=1, view=view)
    try:
        for epoch in itertools.count():
            yield from clips.batches(epoch)
    finally:
        clips.close()


def guides_batches(job: TrainJob) -> Iterator[object]:
    """What the guide's Trainer is given, from a DataLoader with a process on each core."""
    from torch.utils.data import DataLoader
    from train_guide import collate, make_dataset
    from transformers import AutoConfig

    dataset = make_dataset(job, AutoConfig.from_pretrained(job.model))
    num_workers = len(os.sched_getaffinity(0))
    while True:
        yield from DataLoader(dataset, batch_size=job.batch_size, num_workers=num_workers, collate_fn=collate)


if __name__ == "__main__":
    main()
