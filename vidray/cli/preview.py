"""Shows what a model will see: the very clips that training begins an epoch with, or those of validation, as a picture.

    vidray preview --source videos --model MCG-NJU/videomae-base --output preview.png   # a row of frames per clip
    vidray preview --source videos --model MCG-NJU/videomae-base --output preview.gif   # all clips, moving

Pixels are shown before they are normalised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import tyro

from vidray.checkpoints.checkpoint import read_checkpoint
from vidray.errors import UsageError, VideoError
from vidray.pages.picture import encoded, new_picture, write_text
from vidray.sandbox.sandbox import Sandbox
from vidray.sources.labels import load_labelled
from vidray.sources.rows import time_range_of, video_of
from vidray.storage.fetch import fetch
from vidray.storage.store import Store
from vidray.training.config import RecipeName, TrainConfig
from vidray.training.data.augment import augment_config, crop_config
from vidray.training.data.clips import ClipSpec, ClipWorker, job_of
from vidray.training.data.order import clip_seed, epoch_order
from vidray.training.plan import label_source
from vidray.types import DecoderName, Limits, Span, VideoStream, ViewConfig

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

MAX_COLUMNS = 8
"""Frames per row of a contact sheet, and clips per row of an animation."""
_GAP = 4
_CAPTION_HEIGHT = 14


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Show the clips that a model will see, after sampling and augmentation, as a contact sheet or an animation.
    (vidray show is for one video, and what a model makes of it.)"""

    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Labelled videos, as for train; repeat the flag for several."""
    model: str
    """What would be trained: a checkpoint folder or a Hugging Face Hub id. It decides size, frames and stride."""
    output: str = "preview.png"
    """Where the picture goes: .png for a contact sheet, .gif for an animation."""
    num_videos: int = 8
    """Clips to show."""
    augmented: bool = True
    """The clips with which training begins the epoch. --no-augmented: validation clips, as they are."""
    epoch: int = 0
    """Which epoch, from 0: each has other spans, crops and augmentations."""

    recipe: RecipeName = "guide"
    """Defaults of what follows, as for train."""
    span: Span | None = None
    """What a clip spans, as for train."""
    stride: int | None = None
    """Frames between two sampled frames, as for train."""
    square_pixels: bool = False
    """Resize pictures from the shape in which a player shows them, as for train."""
    video_stream: VideoStream | None = None
    """Which stream of a file with several, as for train."""
    decoder: DecoderName | None = None
    """What decodes, as for train."""
    flip: bool = True
    """Mirror every other clip."""
    min_scale: float = TrainConfig.min_scale
    """Least short side before cropping, times the view's size."""
    max_scale: float = TrainConfig.max_scale
    """Greatest short side before cropping, times the view's size."""
    randaugment: int | None = None
    """Magnitude of RandAugment, 0 to 10."""
    erasing: float | None = None
    """Probability of random erasing."""
    resized_crop: bool | None = None
    """Crop a random share of the frame."""
    balanced_sampling: bool = False
    """Draw every class equally often."""
    video_root: str | None = None
    """Folder of the videos that a list speaks of, as for train."""
    list_labels: Literal["folder", "number"] | None = None
    """What is the label in a list, as for train."""
    group_regex: str | None = None
    """What tells a video's scene, as for train."""
    group_column: str | None = None
    """The column that tells a video's scene, as for train."""
    label_key: str = "cls"
    """What is the label in tar files, as for train."""
    validation_share: float = TrainConfig.validation_share
    """Share of the videos that is split off for validation, as for train."""
    seed: int = 0
    """Everything random follows from it, as for train."""
    config: str | None = None
    """A YAML file with any of these names and their values. What is typed wins."""

    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.output.lower().endswith((".png", ".gif")):
            raise UsageError(f"--output: got {self.output!r}, allowed are names that end in .png or .gif")
        if self.num_videos < 1 or self.epoch < 0:
            raise UsageError(f"--num-videos and --epoch: got {self.num_videos}, {self.epoch}; allowed from 1, from 0")
        _ = self.train_config

    @property
    def train_config(self) -> TrainConfig:
        """The same settings, as training takes them."""
        shared = {item.name for item in dataclasses.fields(TrainConfig)} & {f.name for f in dataclasses.fields(self)}
        return TrainConfig(**{name: getattr(self, name) for name in shared})


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One clip of a preview."""

    caption: str
    frames: np.ndarray | None
    """(T, H, W, 3) uint8; None if the video is bad, and the caption says why."""


def run_preview(config: PreviewConfig) -> str:
    """Make the picture and put it where ``config.output`` says. Returns what it shows, in words.

    Raises:
        UsageError: the source, the model or the output will not do.
    """
    view = config.train_config.view(read_checkpoint(config.model, require_head=False).view)
    view = dataclasses.replace(view, num_clips=1, num_crops=1)
    manifest = load_labelled(label_source(config.train_config))
    make = training_clips if config.augmented else validation_clips
    clips = make(manifest.rows_of("train" if config.augmented else "val"), config=config, view=view)
    is_animation = config.output.lower().endswith(".gif")
    data = animation(clips, view=view) if is_animation else contact_sheet(clips, view=view)
    _write(config.output, data)
    num_bad = sum(clip.frames is None for clip in clips)
    return f"{len(clips)} clips{f', {num_bad} of them bad' if num_bad else ''}, in {config.output}"


def _write(output: str, data: bytes) -> None:
    """Puts the picture in its place; another picture that is there is replaced."""
    folder, _, name = output.rpartition("/")
    store = Store(folder or ("/" if output.startswith("/") else "."))
    store.delete(name)
    store.create(name, data)


def training_clips(table: pa.Table, *, config: PreviewConfig, view: ViewConfig) -> list[Shown]:
    """The first clips of an epoch, as training makes them."""
    labels = table["label_id"].to_numpy()
    order = epoch_order(labels, seed=config.seed, epoch=config.epoch, balanced=config.balanced_sampling)
    jobs, captions = [], []
    for row, occurrence in list(zip(order.rows.tolist(), order.occurrences.tolist(), strict=True))[: config.num_videos]:
        seed = clip_seed(seed=config.seed, epoch=config.epoch, row=row, occurrence=occurrence)
        jobs.append(job_of(table, row, seed=seed))
        captions.append(_caption(table.slice(row, 1).to_pylist()[0]))
    crop, augment = crop_config(config.train_config, view), augment_config(config.train_config, view)
    with ClipWorker(ClipSpec(view=view, crop=crop, augment=augment, limits=config.limits)) as worker:
        made = worker.make(jobs)
    return [
        Shown(caption=caption if clip.frames is not None else f"{caption}: {clip.status}", frames=clip.frames)
        for caption, clip in zip(captions, made, strict=True)
    ]


def validation_clips(table: pa.Table, *, config: PreviewConfig, view: ViewConfig) -> list[Shown]:
    """Clips of the validation part, spread over it, as validation sees them."""
    rows = np.unique(np.linspace(0, table.num_rows - 1, config.num_videos).round().astype(int))
    with Sandbox(view=view, limits=config.limits) as sandbox:
        return [_validation_clip(values, sandbox, config.limits) for values in table.take(pa.array(rows)).to_pylist()]


def _validation_clip(values: dict[str, Any], sandbox: Sandbox, limits: Limits) -> Shown:
    try:
        views_VTHWC, _ = sandbox.decode(fetch(video_of(values), limits=limits), time_range=time_range_of(values))
    except VideoError as error:
        return Shown(caption=f"{_caption(values)}: {error.status}", frames=None)
    return Shown(caption=_caption(values), frames=views_VTHWC[0])


def _caption(values: dict[str, Any]) -> str:
    return f"{values['label']} · {values['uri'].rpartition('/')[2]}"


# -- pictures ---------------------------------------------------------------------------------------------------------


def contact_sheet(clips: Sequence[Shown], *, view: ViewConfig) -> bytes:
    """A PNG with a row per clip: its frames from left to right, at most eight, the first and the last among them."""
    columns = min(view.num_frames, MAX_COLUMNS)
    times = np.linspace(0, view.num_frames - 1, columns).round().astype(int)
    sheet, draw = _canvas(columns=columns, rows=len(clips), size=view.size)
    for row, clip in enumerate(clips):
        _write_caption(draw, clip.caption, row=row, size=view.size, width=sheet.width)
        for column, time in enumerate(times.tolist()):
            if clip.frames is not None:
                _paste(sheet, clip.frames[time], row=row, column=column, size=view.size)
    return encoded(sheet, format="PNG")


def animation(clips: Sequence[Shown], *, view: ViewConfig) -> bytes:
    """A GIF of all clips side by side, which lasts as long as they do (one second with ``span="full"``)."""
    columns = min(len(clips), MAX_COLUMNS, max(1, math.isqrt(len(clips) - 1) + 1))
    pictures = [_animation_frame(clips, time, columns, view.size) for time in range(view.num_frames)]
    seconds = float(view.clip_seconds) if view.span == "stride" else 1.0
    milliseconds = max(20, round(1000 * seconds / view.num_frames))
    return encoded(pictures[0], format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def _animation_frame(clips: Sequence[Shown], time: int, columns: int, size: int) -> Image.Image:
    sheet, draw = _canvas(columns=columns, rows=-(-len(clips) // columns), size=size)
    for number, clip in enumerate(clips):
        row, column = divmod(number, columns)
        _write_caption(draw, clip.caption, row=row, column=column, size=size, width=size)
        if clip.frames is not None:
            _paste(sheet, clip.frames[time], row=row, column=column, size=size)
    return sheet


def _canvas(*, columns: int, rows: int, size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    return new_picture(columns * (size + _GAP) + _GAP, rows * (size + _GAP + _CAPTION_HEIGHT) + _GAP)


def _corner(row: int, column: int, size: int) -> tuple[int, int]:
    """(x, y) of a tile's caption; its picture is ``_CAPTION_HEIGHT`` below."""
    return _GAP + column * (size + _GAP), _GAP + row * (size + _GAP + _CAPTION_HEIGHT)


def _paste(sheet: Image.Image, frame_HWC: np.ndarray, *, row: int, column: int, size: int) -> None:
    from PIL import Image

    x, y = _corner(row, column, size)
    sheet.paste(Image.fromarray(frame_HWC), (x, y + _CAPTION_HEIGHT))


def _write_caption(draw: ImageDraw.ImageDraw, text: str, *, row: int, column: int = 0, size: int, width: int) -> None:
    write_text(draw, text, _corner(row, column, size), size=10, width=width)
