"""The flow of Transformers' video classification guide: ``Trainer`` and PyTorchVideo's ``Ucf101`` with its decoding.

``python benchmarks/train.py --engines guide guide-workers`` runs it.

``--extra 2`` gives the DataLoader two worker processes; the guide has none. The guide no longer runs as it stands:
PyTorchVideo's transforms import a module that torchvision dropped. Here its successor takes the place.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import torch
from train_common import Marks, TrainJob, parse_job
from transformers import AutoModelForVideoClassification, Trainer, TrainerCallback, TrainingArguments

from tests.support.checkpoints import IMAGENET_MEAN, IMAGENET_STD

SAMPLE_RATE, FPS = 4, 30


def main() -> None:
    """Train as the guide does, without its evaluation, saving and uploading, which are not measured."""
    job = parse_job(__doc__)
    model = AutoModelForVideoClassification.from_pretrained(job.model)
    marks = Marks()
    with tempfile.TemporaryDirectory(prefix="vidray-benchmark-train-") as output:
        trainer = Trainer(
            model,
            make_arguments(job, output),
            train_dataset=make_dataset(job, model.config),
            data_collator=collate,
            callbacks=[Watch(marks, job)],
        )
        trainer.train()
    marks.write(job.output)


def repair_pytorchvideo() -> None:
    """Its transforms ask for this module by its old name."""
    from torchvision.transforms import _functional_tensor

    sys.modules["torchvision.transforms.functional_tensor"] = _functional_tensor


def make_arguments(job: TrainJob, output: str) -> TrainingArguments:
    """The guide's."""
    return TrainingArguments(
        output,
        remove_unused_columns=False,
        eval_strategy="no",
        save_strategy="no",
        learning_rate=5e-5,
        per_device_train_batch_size=job.batch_size,
        warmup_steps=0.1,
        logging_steps=job.mark_every,
        max_steps=job.num_steps,
        dataloader_num_workers=int(job.extra or 0),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )


def make_dataset(job: TrainJob, config: Any) -> Any:
    """The guide's training data."""
    repair_pytorchvideo()
    import pytorchvideo.data
    from pytorchvideo.transforms import ApplyTransformToKey, Normalize, RandomShortSideScale, UniformTemporalSubsample
    from torchvision.transforms import Compose, Lambda, RandomCrop, RandomHorizontalFlip

    transform = Compose(
        [
            ApplyTransformToKey(
                key="video",
                transform=Compose(
                    [
                        UniformTemporalSubsample(config.num_frames),
                        Lambda(lambda frames: frames / 255.0),
                        Normalize(IMAGENET_MEAN, IMAGENET_STD),
                        RandomShortSideScale(min_size=256, max_size=320),
                        RandomCrop((config.image_size, config.image_size)),
                        RandomHorizontalFlip(p=0.5),
                    ]
                ),
            )
        ]
    )
    return pytorchvideo.data.Ucf101(
        data_path=str(job.videos / "train"),
        clip_sampler=pytorchvideo.data.make_clip_sampler("random", config.num_frames * SAMPLE_RATE / FPS),
        decode_audio=False,
        transform=transform,
    )


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The guide's."""
    pixel_values = torch.stack([example["video"].permute(1, 0, 2, 3) for example in examples])
    return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}


class Watch(TrainerCallback):
    """Sets the marks. The time between the end of a step and the begin of the next is the wait for its batch."""

    def __init__(self, marks: Marks, job: TrainJob) -> None:
        self._marks, self._job = marks, job
        self._last = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._marks.add_phases({"data_wait": self._since_last()})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._marks.add_phases({"forward_backward": self._since_last()})
        if state.global_step % self._job.mark_every == 0:
            self._marks.add(state.global_step * self._job.batch_size)

    def _since_last(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


if __name__ == "__main__":
    main()
