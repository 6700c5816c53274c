"""Small real parts for tests of the training engine: networks, clips in memory, and workers over gloo."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.support import gloo
from vidray.models.families import FAMILIES, Family
from vidray.storage.store import Store
from vidray.training.config import TrainConfig
from vidray.training.data.bad_videos import BadVideo
from vidray.training.data.batch import Batch
from vidray.training.loop.checkpoint_writer import CheckpointWriter
from vidray.training.loop.layers import add_drop_path
from vidray.training.loop.loop import Loop
from vidray.training.loop.optim import freeze
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.task import TrainingTask
from vidray.types import ViewConfig

VIEW = ViewConfig(num_frames=8, size=32, num_clips=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NUM_LABELS = 3
CONV = Family(
    model_type="tiny-conv",
    module="",
    model_class="",
    config_module="",
    config_class="",
    default_num_frames=8,
    default_size=32,
    input_rule="any",
    mean=VIEW.mean,
    std=VIEW.std,
)


class TinyConv(nn.Module):
    """A network with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm3d(6)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(6, NUM_LABELS)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        x = torch.relu(self.norm(self.conv(pixel_values.transpose(1, 2))))
        return SimpleNamespace(logits=self.classifier(self.dropout(x.mean(dim=(2, 3, 4)))))


class MemoryClips:
    """Random clips whose brightness tells the label, in the order and the shares that training data comes in."""

    def __init__(self, *, num_videos: int, config: TrainConfig, ranks: Ranks, bad: Sequence[int] = ()) -> None:
        rng = np.random.default_rng(1)
        self.labels = rng.integers(0, NUM_LABELS, size=num_videos)
        pixels = rng.integers(0, 128, size=(num_videos, *VIEW.views_shape[1:])) + 60 * self.labels.reshape(
            -1, 1, 1, 1, 1
        )
        self._pixels = torch.from_numpy(pixels.astype(np.uint8))
        self._config, self._ranks, self._bad = config, ranks, set(bad)
        self.num_samples = num_videos
        self.bad_videos: dict[int, BadVideo] = {}
        self.seen: list[tuple[int, int]] = []

    def batches(self, epoch: int, start_sample: int) -> Iterator[Batch]:
        order = np.random.default_rng([self._config.seed, epoch]).permutation(self.num_samples)
        size = self._config.global_batch_size
        for start in range(start_sample, self.num_samples, size):
            yield self._batch(epoch, order[start : start + size])

    def prefetch(self, epoch: int) -> None: ...

    def close(self) -> None: ...

    def _batch(self, epoch: int, rows: np.ndarray) -> Batch:
        share = -(-self._config.global_batch_size // self._ranks.world_size)
        own = rows[self._ranks.rank * share : (self._ranks.rank + 1) * share]
        self.seen += [(epoch, int(row)) for row in own]
        damaged = BadVideo(status="corrupt", message="damaged")
        self.bad_videos |= {int(row): damaged for row in own if row in self._bad}
        slots = np.concatenate([own, np.full(share - len(own), -1)])
        weights = [float(row >= 0 and row not in self._bad) for row in slots]
        return Batch(
            pixels=self._pixels[slots],
            labels=torch.from_numpy(self.labels[slots]),
            weights=torch.tensor(weights),
            rows=torch.from_numpy(slots),
        )


def make_model(kind: str) -> tuple[nn.Module, Family]:
    """``videomae`` or ``conv``, with the same weights every time."""
    torch.manual_seed(0)
    if kind == "conv":
        return TinyConv(), CONV
    family = FAMILIES["videomae"]
    model_class, config_class = family.load_classes()
    config = config_class(
        image_size=32,
        patch_size=16,
        num_frames=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=NUM_LABELS,
        hidden_dropout_prob=0.1 if kind == "videomae" else 0.0,
    )
    return model_class(config), family


def make_config(output: Path | str = "unused", **values: Any) -> TrainConfig:
    """Two epochs at a rate that moves the weights."""
    chosen = {"epochs": 2, "learning_rate": 3e-3, "log_every_steps": 1} | values
    return TrainConfig(source=("unused",), model="unused", output=str(output), **chosen)


class NoWriter:
    """Keeps nothing."""

    def save(self, state: object) -> None: ...

    def save_best(self, step: int, weights: object) -> None: ...


def make_loop(
    config: TrainConfig,
    *,
    kind: str = "plain",
    ranks: Ranks | None = None,
    num_videos: int = 22,
    bad: Sequence[int] = (),
    writer: Any = None,
    in_float64: bool = False,
    **more: Any,
) -> Loop:
    """A loop over clips in memory; its validation says how far the weights are from zero.

    Args:
        in_float64: where two orders of summation are compared: AdamW takes a step of the learning rate even where a
            gradient is nothing but rounding.
    """
    ranks = ranks or Ranks()
    model, family = make_model(kind)
    if in_float64:
        model.double().register_forward_pre_hook(_pixels_to_float64, with_kwargs=True)
    add_drop_path(model, family, config.hyper.drop_path)
    freeze(model, family, backbone=config.freeze_backbone)
    model.to(ranks.device)
    clips = MemoryClips(num_videos=num_videos, config=config, ranks=ranks, bad=bad)
    task = TrainingTask(
        config=config, model=model, family=family, view=VIEW, clips=clips, labels=clips.labels, num_labels=NUM_LABELS
    )
    return Loop(task, ranks, validate=_validate, writer=writer or NoWriter(), **more)


def _pixels_to_float64(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value.double() for name, value in kwargs.items()}


def _validate(model: nn.Module) -> dict[str, float]:
    size = sum(float(parameter.detach().abs().sum()) for parameter in model.parameters())
    return {"accuracy": 1 / (1 + size), "nll": size}


def start_workers(num_workers: int, folder: Path, options: dict[str, Any]) -> list[Any]:
    """Start workers over gloo, each in a process of its own; what they found is in ``folder/<rank>.json`` and .pt."""
    folder.mkdir(parents=True, exist_ok=True)
    preload = ["tests.support.training_parts", "transformers.models.videomae.modeling_videomae"]
    return gloo.start(num_workers, _work, num_workers, str(folder), options, preload=preload)


def run_workers(num_workers: int, folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Start workers, wait, and return what each found."""
    gloo.finish(start_workers(num_workers, folder, options), seconds=120)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_workers)]


def _work(rank: int, world_size: int, folder: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank=rank, world_size=world_size)
    loop_options = dict(options)
    config = make_config(folder, **loop_options.pop("config"))
    writer = CheckpointWriter(Store(folder), num_kept=3)
    loop = make_loop(config, ranks=ranks, writer=writer, **loop_options)
    _log_steps(loop, Path(folder) / f"seen-{rank}.txt")
    restore(loop, writer)
    loop.run()
    writer.finish()
    bad_videos = {row: bad.status for row, bad in loop.position.bad_videos.items()}
    found = {"metrics_rows": loop.metrics_rows, "seen": loop.task.clips.seen, "bad_videos": bad_videos}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    torch.save(loop.task.model.state_dict() | {"ema": loop.published_tensors()}, Path(folder) / f"{rank}.pt")


def restore(loop: Loop, writer: CheckpointWriter) -> None:
    """Go on from the last state, if there is one."""
    if (state := writer.load_last(loop.ranks)) is not None:
        loop.restore(state)


def _log_steps(loop: Loop, path: Path) -> None:
    """Write down what each step saw, at once: ``step epoch row row …``."""
    step = loop._step

    def logged(batch: Batch) -> None:
        rows = " ".join(str(int(row)) for row in batch.rows if row >= 0)
        with path.open("a") as file:
            file.write(f"{loop.position.step} {loop.position.epoch} {rows}\n")
        step(batch)

    loop._step = logged
