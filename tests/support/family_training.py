"""Two training processes that take every variant in turn: the project's own loop, on clips of moving shapes.

One pair of processes serves all variants, since starting one costs more than training a tiny network.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tests.support import gloo, runs
from tests.support.checkpoints import VARIANTS, make_family
from tests.support.training_parts import NoWriter
from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vidray.checkpoints.write import write_checkpoint
from vidray.models.predict import forward_views
from vidray.sources.labels import LabelSource, load_labelled
from vidray.training.config import TrainConfig
from vidray.training.data.bad_videos import BadVideo
from vidray.training.data.batch import Batch
from vidray.training.evaluate import EvalSpec, evaluate
from vidray.training.loop.build import build_model
from vidray.training.loop.gradients import GradientSum
from vidray.training.loop.loop import Loop
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.task import TrainingTask
from vidray.types import Limits, ViewConfig
from vidray.video.views import decode_views

LABELS = ("left", "right")
NUM_VIDEOS = 16
NEW_LABELS = ("to the left", "to the right")
"""Other names: a head is kept where the labels stay the same."""
OLD_LABELS = ("what", "it", "was", "trained", "for")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a family learns."""

    num_steps: int
    learning_rate: float
    head_rate: float
    """Learning rate of the head alone, above features of whatever size the untrained backbone gives."""


_CONVOLUTIONS = Recipe(num_steps=4, learning_rate=2e-3, head_rate=2e-3)
RECIPES = {
    "videomae": Recipe(num_steps=16, learning_rate=3e-3, head_rate=3e-2),
    "timesformer": Recipe(num_steps=16, learning_rate=3e-3, head_rate=1e-2),
    "vivit": Recipe(num_steps=20, learning_rate=3e-3, head_rate=1e-2),
    "vjepa2": Recipe(num_steps=16, learning_rate=3e-3, head_rate=3e-2),
    "videoprism_vision_model": Recipe(num_steps=20, learning_rate=3e-3, head_rate=1e-2),
    "pytorchvideo_resnet": _CONVOLUTIONS,
    "pytorchvideo_slowfast": _CONVOLUTIONS,
    "pytorchvideo_x3d": Recipe(num_steps=3, learning_rate=2e-3, head_rate=3e-4),
    "pytorchvideo_mvit": Recipe(num_steps=8, learning_rate=1e-3, head_rate=3e-3),
    "movinet": Recipe(num_steps=6, learning_rate=1e-2, head_rate=1e-2),
}
HEAD_STEPS = 24
FREEZING = (
    *("videomae", "timesformer", "vivit", "vjepa2", "videoprism_vision_model"),
    *("slow_r50", "slowfast_r50", "x3d_xs", "mvit_base_16x4", "movinet_a0_base", "movinet_a0_stream"),
)
"""The variants whose head is trained alone, too: what is frozen is a matter of the family."""


def train_all(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Train every variant on two workers; returns by variant what each rank found. Folders: ``<variant>/trained``."""
    runs.make_classes(folder / "videos", num_videos=NUM_VIDEOS, num_frames=12)
    preload = ["tests.support.family_training", "transformers.modeling_utils"]
    gloo.finish(gloo.start(2, _work, folder, preload=preload), seconds=600)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {name: [by_name[name] for by_name in found] for name in VARIANTS}


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    found = {name: _train_variant(name, folder, rank) for name in VARIANTS}
    (folder / f"{rank}.json").write_text(json.dumps(found))


def _train_variant(name: str, folder: Path, rank: int) -> dict[str, Any]:
    model_type, changes = VARIANTS[name]
    if rank == 0:
        make_family(folder / name / "model", model_type, labels=OLD_LABELS, **changes)
    dist.barrier()
    checkpoint = read_checkpoint(str(folder / name / "model"))
    view = dataclasses.replace(checkpoint.view, num_clips=1, span="full")
    recipe = RECIPES[model_type]
    rates = {"learning_rate": recipe.learning_rate, "epochs": recipe.num_steps}
    whole = _train(checkpoint, LABELS, view, folder, rank, **rates)
    if rank == 0:
        _save(whole.model, view, folder / name)
    dist.barrier()
    result: dict[str, Any] = {"whole": dataclasses.asdict(whole.found)}
    if name in FREEZING:
        rates = {"learning_rate": recipe.head_rate, "epochs": HEAD_STEPS}
        base = read_checkpoint(str(folder / name / "trained"))
        head = _train(base, NEW_LABELS, view, folder, rank, freeze_backbone=True, **rates)
        result["head"] = dataclasses.asdict(head.found)
        result["confusion"] = _evaluate(head.model, checkpoint, view, folder, rank)
    return result


@dataclasses.dataclass(kw_only=True)
class Found:
    """What one rank saw of one training."""

    losses: list[float]
    without_gradient: list[str]
    """Parameters that learn but had no gradient in some step."""
    changed: list[str]
    """Parameters and buffers that are not to the bit what they were."""
    parameters: list[str]
    digest: str
    """Of all parameters and buffers in the end."""


@dataclasses.dataclass(kw_only=True)
class Trained:
    """A network after training, and what was seen on the way."""

    model: nn.Module
    found: Found


class _Watching(Ranks):
    """Ranks that note which parameters come without a gradient, which the sum would take for zero."""

    lacking: set[int] = set()  # noqa: RUF012

    def gradient_sum(self, parameters: Sequence[nn.Parameter]) -> GradientSum:
        return _WatchingSum(parameters, self.lacking)


class _WatchingSum(GradientSum):
    def __init__(self, parameters: Sequence[nn.Parameter], lacking: set[int]) -> None:
        super().__init__(parameters, world_size=2)
        self._learning, self._lacking = parameters, lacking

    def finish(self) -> None:
        self._lacking.update(id(parameter) for parameter in self._learning if parameter.grad is None)
        super().finish()


def _train(
    checkpoint: Checkpoint, labels: tuple[str, ...], view: ViewConfig, folder: Path, rank: int, **values: Any
) -> Trained:
    config = TrainConfig(
        source=("unused",),
        model="unused",
        output="unused",
        global_batch_size=NUM_VIDEOS,
        schedule="constant",
        warmup_share=0.0,
        log_every_steps=1,
        **values,
    )
    model = build_model(checkpoint, config, labels=labels)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clips = MotionClips(folder / "videos", view=view, rank=rank)
    ranks = _Watching(rank=rank, world_size=2)
    ranks.lacking.clear()
    task = TrainingTask(
        config=config,
        model=model,
        family=checkpoint.family,
        view=view,
        clips=clips,
        labels=clips.labels,
        num_labels=len(labels),
    )
    loop = Loop(task, ranks, validate=lambda model: {"accuracy": 0.0, "nll": 0.0}, writer=NoWriter())
    loop.run()
    after = model.state_dict()
    names = dict(model.named_parameters())
    found = Found(
        losses=[row["loss"] for row in loop.metrics_rows if row["kind"] == "train"],
        without_gradient=[name for name, parameter in names.items() if id(parameter) in ranks.lacking],
        changed=[name for name, tensor in before.items() if not torch.equal(tensor, after[name])],
        parameters=list(names),
        digest=_digest(after),
    )
    return Trained(model=model.eval(), found=found)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.detach().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


class MotionClips:
    """One clip of each video, all of them in each batch; half of it is this rank's."""

    def __init__(self, folder: Path, *, view: ViewConfig, rank: int) -> None:
        self.labels = np.array([LABELS.index(path.parent.name) for path in _paths(folder)])
        own = slice(rank * NUM_VIDEOS // 2, (rank + 1) * NUM_VIDEOS // 2)
        self._batch = Batch(
            pixels=torch.from_numpy(_decode(folder, view.num_frames, view.size)[own]),
            labels=torch.from_numpy(self.labels[own]),
            weights=torch.ones(NUM_VIDEOS // 2),
            rows=torch.arange(NUM_VIDEOS)[own],
        )
        self.num_samples = NUM_VIDEOS
        self.bad_videos: dict[int, BadVideo] = {}

    def prefetch(self, epoch: int) -> None:
        """They are in memory."""

    def batches(self, epoch: int, start_sample: int) -> Iterator[Batch]:
        yield self._batch

    def close(self) -> None:
        """Nothing to end."""


def _paths(folder: Path) -> list[Path]:
    """The videos in an order that mixes the classes."""
    return sorted(folder.glob("*/*.mp4"), key=lambda path: path.name)


@functools.cache
def _decode(folder: Path, num_frames: int, size: int) -> np.ndarray:
    """(N, T, H, W, C) uint8: one clip of each whole video."""
    view = ViewConfig(num_frames=num_frames, size=size, num_clips=1, span="full")
    return np.concatenate([decode_views(path.read_bytes(), view=view, limits=Limits())[0] for path in _paths(folder)])


def _save(model: Any, view: ViewConfig, folder: Path) -> None:
    """The trained checkpoint, and logits of the network that it was written from."""
    write_checkpoint(model, view, folder / "trained")
    torch.save(logits_of(model, read_checkpoint(str(folder / "trained"))), folder / "logits.pt")


def logits_of(model: nn.Module, checkpoint: Checkpoint) -> torch.Tensor:
    """Of two random views."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (2, *checkpoint.view.views_shape[1:]), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        return forward_views(model, views, family=checkpoint.family, view=checkpoint.view)


def _evaluate(model: nn.Module, checkpoint: Checkpoint, view: ViewConfig, folder: Path, rank: int) -> Any:
    """The confusion matrix over all videos, decoded by both ranks."""
    table = load_labelled(LabelSource(source=(str(folder / "videos"),))).table
    spec = EvalSpec(
        table=table, labels=NEW_LABELS, family=checkpoint.family, view=view, limits=Limits(), num_decoders=1
    )
    figures, _ = evaluate(model, spec, Ranks(rank=rank, world_size=2))
    return figures["confusion"]
