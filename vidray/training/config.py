"""What a fine-tuning run is asked for: one definition for the flags, the config file and the library.

A recipe gives the defaults of all ``Hyperparameters``; a flag that is typed wins. ``TrainConfig.hyper`` is the result.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from vidray.flags import VIEW_FLAGS, flag_name, override_view, parse_views, require, require_deadline, shown_as
from vidray.logs import LogFormat
from vidray.storage.redaction import public_uri
from vidray.storage.retry import STORE_DEADLINE_SECONDS
from vidray.types import Aggregation, DecoderName, Limits, Span, VideoStream, ViewConfig

RecipeName = Literal["guide", "videomae"]
Schedule = Literal["cosine", "linear", "constant"]
Metric = Literal["accuracy", "mean_class_accuracy", "top5_accuracy", "nll"]
Tracker = Literal["wandb", "mlflow"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """How to train: every figure that a recipe sets, with the flags put in their place."""

    epochs: int
    """Passes over the training videos."""
    learning_rate: float
    """Peak learning rate, after warm-up, for the global batch."""
    schedule: Schedule
    """How the learning rate falls after warm-up: to zero along a cosine or a line, or not at all."""
    warmup_share: float
    """Share of all steps in which the learning rate rises from zero."""
    weight_decay: float
    """Of AdamW; biases and other one-dimensional parameters have none."""
    layer_decay: float
    """Each layer's learning rate is this times that of the layer above it; 1: all alike."""
    drop_path: float
    """Probability that the last layer's residual branches are left out for a clip; rises linearly from 0."""
    label_smoothing: float
    mixup: float
    """Alpha of mixup's beta distribution; 0: none. With CutMix too, each batch gets one of the two, by lot."""
    cutmix: float
    """Alpha of CutMix's beta distribution; 0: none."""
    clip_norm: float
    """Largest norm of the gradient; 0: not clipped."""
    randaugment: int
    """Magnitude of RandAugment, 0 to 10; 0: none."""
    erasing: float
    """Probability that a box of a clip is erased."""
    resized_crop: bool
    """Crop a random share (0.08 to 1) of the frame, instead of a random short side and a crop of the view's size."""


_RECIPES: dict[RecipeName, dict[str, Any]] = {
    # The Transformers video classification guide: Trainer's defaults but for these.
    "guide": {
        "epochs": 4,
        "learning_rate": 5e-5,
        "schedule": "linear",
        "warmup_share": 0.1,
        "weight_decay": 0.0,
        "layer_decay": 1.0,
        "drop_path": 0.0,
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "clip_norm": 1.0,
        "randaugment": 0,
        "erasing": 0.0,
        "resized_crop": False,
    },
    # VideoMAE's fine-tuning (Tong et al., 2022). learning_rate and warmup_share depend on batch and epochs: see hyper.
    "videomae": {
        "epochs": 50,
        "schedule": "cosine",
        "weight_decay": 0.05,
        "layer_decay": 0.75,
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "clip_norm": 0.0,
        "randaugment": 7,
        "erasing": 0.25,
        "resized_crop": True,
    },
}
_VIDEOMAE_BASE_RATE = 5e-4
_VIDEOMAE_WARMUP_EPOCHS = 5


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a video classifier on labelled videos, data-parallel; the result is a checkpoint that score can use."""

    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Labelled videos; repeat the flag for several. Folders by class (with or without train/ val/ test/), a
    Kinetics-style CSV (label, file, start, end), UCF101's split lists, or a table with `uri` and `label`."""
    model: str
    """What to start from: a checkpoint folder (local, s3://, gs://, az://) or a Hugging Face Hub id."""
    output: str
    """The folder for the checkpoint, its state while training, metrics and report."""

    recipe: RecipeName = "guide"
    """Defaults of what follows. guide: the Transformers guide's. videomae: the paper's, for longer training."""
    epochs: int | None = None
    """Passes over the training videos. Default: guide 4, videomae 50."""
    global_batch_size: int = 8
    """Clips per optimizer step, over all workers together."""
    micro_batch_size: int | None = None
    """Clips per forward on one worker; more than that are accumulated. Default: the worker's whole part."""
    learning_rate: float | None = None
    """Peak learning rate. Default: guide 5e-5, videomae 5e-4 × global batch / 256."""
    schedule: Schedule | None = None
    """After warm-up. Default: guide linear, videomae cosine."""
    warmup_share: float | None = None
    """Share of all steps in which the learning rate rises. Default: guide 0.1, videomae 5 epochs."""
    weight_decay: float | None = None
    """Default: guide 0, videomae 0.05. Never on biases and other one-dimensional parameters."""
    layer_decay: float | None = None
    """Learning rate of each layer relative to the one above. Default: guide 1, videomae 0.75."""
    drop_path: float | None = None
    """Stochastic depth of the last layer. Default: guide 0, videomae 0.1."""
    label_smoothing: float | None = None
    """Default: guide 0, videomae 0.1."""
    mixup: float | None = None
    """Alpha of mixup, 0 for none. Default: guide 0, videomae 0.8."""
    cutmix: float | None = None
    """Alpha of CutMix, 0 for none. Default: guide 0, videomae 1."""
    clip_norm: float | None = None
    """Largest norm of the gradient, 0 for any. Default: guide 1, videomae 0."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the weights with this decay, validate and publish it; 0: none."""
    freeze_backbone: bool = False
    """Train the head alone; batch-norm statistics and dropout of the rest stand still too."""

    views: str = "5x1"
    """Views per video of the last validation, CLIPSxCROPS, and of the checkpoint: what score uses by default."""
    span: Span | None = None
    """What a clip spans: `stride` or `full` (the whole video). Default: from the model's checkpoint."""
    stride: int | None = None
    """Frames between two sampled frames, at 30 frames per second. Default: from the model's checkpoint."""
    aggregation: Aggregation | None = None
    """How views become one answer. Default: from the model's checkpoint."""
    square_pixels: bool = False
    """Resize pictures whose pixels are not square from the shape in which a player shows them. Default: from the
    model's checkpoint, which mostly takes pixels as they are stored."""
    video_stream: VideoStream | None = None
    """Which stream of a file with several: the one marked as `default`, or the `first`. Default: from the model's
    checkpoint, else default."""
    decoder: DecoderName | None = None
    """What decodes: `vidray`, or PyTorchVideo's `EncodedVideo` (`pytorchvideo`), which gives the same frames for
    several times the CPU time. Default: from the model's checkpoint, else vidray."""

    flip: bool = True
    """Mirror half of the training clips. Choose --no-flip where left and right matter."""
    min_scale: float = 256 / 224
    """A training clip's short side is at least this times the view's size, before cropping (256 for views of 224)."""
    max_scale: float = 320 / 224
    """And at most this times the view's size (320 for views of 224)."""
    randaugment: int | None = None
    """Magnitude of RandAugment (4 operations), 0 to 10; 0: none. Default: guide 0, videomae 7."""
    erasing: float | None = None
    """Probability of random erasing. Default: guide 0, videomae 0.25."""
    resized_crop: bool | None = None
    """Crop a random share of the frame (0.08 to 1). Default: guide no, videomae yes."""

    video_root: str | None = None
    """Folder of the videos that a table or a list speaks of. Default: the folder it lies in."""
    list_labels: Literal["folder", "number"] | None = None
    """What is the label in a list of PATH NUMBER, where folders and numbers contradict each other."""
    group_regex: str | None = None
    """What in a video's name tells its scene (the first group of the expression): a scene is never on both sides of
    the split. Default: UCF101's `_gNN_` where names have it, else every video is its own."""
    group_column: str | None = None
    """The column of a table that tells a video's scene; with tar files a key of the .json beside a video."""
    label_key: str = "cls"
    """In tar files: what beside a video is its label: `cls` or `txt` (the text of that file), or a key of its .json."""
    validation_share: float = 0.15
    """Share of the videos that is split off for validation, where the sources have no validation part."""
    class_weights: bool = False
    """Weigh the loss by the inverse frequency of the classes."""
    balanced_sampling: bool = False
    """Draw every class equally often in an epoch, with repeats."""

    validate_every: int = 1
    """Epochs between validations with one view per video."""
    best_metric: Metric = "accuracy"
    """Which validation metric decides what is the best checkpoint (nll: the lowest)."""
    patience: int = 0
    """Stop early when this many validations in a row bring nothing better; 0: never."""

    save_every_steps: int = 500
    """Steps between saved states, besides one at the end of each epoch: a crash costs at most these."""
    keep_states: int = 3
    """Saved states that are kept."""
    restart_from: str | None = None
    """Go on from this saved state (`step-00001200`) and forget later ones. Default: the last one that is whole."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    log_to: Annotated[tuple[Tracker, ...], tyro.conf.UseAppendAction] = ()
    """Also log to wandb or mlflow, if it is installed."""
    push_to_hub: str | None = None
    """Upload the finished checkpoint to this Hugging Face Hub id, as a private repository. Of an output that is
    finished already, too."""

    workers: int = 1
    """Training processes, one per GPU if there are GPUs. 1 without a cluster trains in this process."""
    device: Device = "auto"
    """Where the model trains. auto: on GPUs if there are any."""
    precision: Precision = "auto"
    """bf16: autocast. auto: bf16 on GPUs that have it, else fp32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0
    """Everything random follows from it."""
    deterministic: bool = False
    """Only deterministic operations (on GPUs slower)."""
    threads: int | None = None
    """Torch threads per worker on CPUs. Default: the CPUs over the workers, at least 1. Results depend on it."""
    max_restarts: int = 3
    """How often failed workers are restarted."""
    decoders: int | None = None
    """Videos decoded at once per worker. Default: from the CPUs."""
    ray_address: str | None = None
    """Ray cluster to use. Default: $RAY_ADDRESS (set by `ray job submit`), else this machine, where Ray is started if
    there are several workers."""
    wait_for_nodes: float = 0.0
    """Seconds to wait for nodes of a Ray cluster, where too few are there and no autoscaler announces more."""
    secret_parameters: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A parameter of http URLs that signs them or holds a token; those of S3, GCS, Azure and CloudFront are known.
    URLs that differ only in such parameters are one object, and they are stored nowhere. May be repeated."""
    store_deadline_seconds: float = STORE_DEADLINE_SECONDS
    """How many seconds to go on trying when a store does not answer, before the command gives up."""
    max_failure_rate: float = 0.05
    """Stop with exit code 3 when more than this share of the videos turn out bad."""
    log_format: LogFormat = "text"
    """What is printed of how it goes: `text` for people, or for each event a line of `json` on standard error."""
    config: str | None = None
    """A YAML file with any of these names and their values. What is typed wins."""

    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require(len(self.source) > 0, "--source", self.source, "at least one")
        require(parse_views(self.views) is not None, "--views", self.views, "like 5x3 or 1x1")
        for name in _COUNTS:
            value = getattr(self, name)
            require(value is None or value >= 1, flag_name(name), value, "at least 1")
        for name in _SHARES:
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, flag_name(name), value, "at least 0 and below 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            require(value is None or value >= 0, flag_name(name), value, "at least 0")
        require(self.workers <= self.global_batch_size, "--workers", self.workers, "at most --global-batch-size")
        require(1 <= self.min_scale <= self.max_scale, "--min-scale", self.min_scale, "1 to --max-scale")
        decay = self.layer_decay
        require(decay is None or 0 < decay <= 1, "--layer-decay", decay, "above 0, at most 1")
        require((self.randaugment or 0) <= 10, "--randaugment", self.randaugment, "0 to 10")
        require_deadline(self.store_deadline_seconds)
        restart = self.restart_from
        is_step = restart is None or bool(re.fullmatch(r"step-\d{8,}", restart))
        require(is_step, "--restart-from", restart, "like step-00001200")

    @property
    def hyper(self) -> Hyperparameters:
        """The recipe's figures with what was asked for put in their place."""
        names = [item.name for item in dataclasses.fields(Hyperparameters)]
        asked = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        values = _RECIPES[self.recipe] | asked
        values.setdefault("learning_rate", _VIDEOMAE_BASE_RATE * self.global_batch_size / 256)
        values.setdefault("warmup_share", min(_VIDEOMAE_WARMUP_EPOCHS / values["epochs"], 0.5))
        return Hyperparameters(**values)

    def view(self, base: ViewConfig) -> ViewConfig:
        """The model's view config with what was asked for: that of the last validation and of the checkpoint."""
        return override_view(base, self.views, {name: getattr(self, name) for name in VIEW_FLAGS})

    def settings(self) -> dict[str, Any]:
        """Plain values of all that decides on the result, for an output to refuse a run with others."""
        values = dataclasses.asdict(self)
        values["source"] = tuple(map(public_uri, self.source))
        values["video_root"] = None if self.video_root is None else public_uri(self.video_root)
        kept = {name: value for name, value in values.items() if name not in _MAY_DIFFER_ON_RESUME}
        return _as_json(kept | dataclasses.asdict(self.hyper))


_COUNTS = (
    *("epochs", "global_batch_size", "micro_batch_size", "stride", "validate_every", "save_every_steps"),
    *("keep_states", "log_every_steps", "workers", "threads", "decoders"),
)
_SHARES = ("warmup_share", "drop_path", "label_smoothing", "erasing", "ema_decay", "validation_share")
_NOT_NEGATIVE = ("learning_rate", "weight_decay", "mixup", "cutmix", "clip_norm", "randaugment", "patience", "seed")
_MAY_DIFFER_ON_RESUME = frozenset(
    {
        *("output", "config", "recipe", "workers", "micro_batch_size", "threads", "max_restarts", "decoders"),
        *("ray_address", "wait_for_nodes", "save_every_steps", "keep_states", "restart_from", "log_every_steps"),
        *("log_to", "log_format", "push_to_hub", "store_deadline_seconds", "secret_parameters"),
        *("max_failure_rate", "limits", "compile", "gradient_checkpointing", "device", "precision", "deterministic"),
    }
)
"""May differ when a run goes on: where and how fast it runs, not what it computes (but for rounding)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a checkpoint on labelled videos: every video once, with all its views."""

    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Labelled videos, as for train; repeat the flag for several."""
    model: str
    """A checkpoint folder (local, s3://, gs://, az://) or a Hugging Face Hub id."""
    video_root: str | None = None
    """Folder of the videos that a table or a list speaks of. Default: the folder it lies in."""
    list_labels: Literal["folder", "number"] | None = None
    """What is the label in a list of PATH NUMBER, where folders and numbers contradict each other."""
    label_key: str = "cls"
    """What is the label in tar files, as for train."""
    output: str | None = None
    """A folder for metrics.json and report/, with --segments for metrics.json and the scores. Default: the figures are
    only printed."""
    split: Literal["val", "train", "test", "all"] = "all"
    """Which part of the sources, where they have parts."""
    views: str | None = None
    """Views per video as CLIPSxCROPS. Default: what the checkpoint was validated with, else 5x1."""
    span: Span | None = None
    """What a clip spans: `stride` or `full` (the whole video). Default: from the checkpoint."""
    stride: int | None = None
    """Frames between two sampled frames, at 30 frames per second. Default: from the checkpoint."""
    aggregation: Aggregation | None = None
    """How views become one answer. Default: from the checkpoint."""
    square_pixels: bool = False
    """Resize pictures whose pixels are not square from the shape in which a player shows them. Default: from the
    checkpoint."""
    video_stream: VideoStream | None = None
    """Which stream of a file with several: `default` or `first`. Default: from the checkpoint."""
    decoder: DecoderName | None = None
    """What decodes: `vidray` or `pytorchvideo`. Default: from the checkpoint."""
    segments: Annotated[float | Literal["clip"] | None, shown_as("SECONDS|clip")] = None
    """Evaluate when something happens: the sources' labels have start and end, and the moments that windows of SECONDS
    give are held against them (mAP at tIoU 0.3 to 0.7, as ActivityNet's); `clip`: windows as long as the model's."""
    segment_stride: Annotated[float | None, shown_as("SECONDS")] = None
    """From the start of a window to that of the next. Default: the length of a window."""
    min_score: float = 0.5
    """With --segments: leave out windows whose best label scores less."""
    device: Device = "auto"
    """Where the model runs."""
    precision: Precision = "auto"
    """Arithmetic of the model. auto: bf16 on a GPU that has it, else fp32."""
    decoders: int | None = None
    """Videos decoded at once. Default: from the CPUs."""
    secret_parameters: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A parameter of http URLs that signs them or holds a token; those of S3, GCS, Azure and CloudFront are known.
    URLs that differ only in such parameters are one object, and they are stored nowhere. May be repeated."""
    store_deadline_seconds: float = STORE_DEADLINE_SECONDS
    """How many seconds to go on trying when a store does not answer, before the command gives up."""
    max_failure_rate: float = 0.05
    """Exit with code 3 if more than this share of the videos cannot be decoded."""
    log_format: LogFormat = "text"
    """What is printed of how it goes: `text` for people, or for each event a line of `json` on standard error."""
    config: str | None = None
    """A YAML file with any of these names and their values. What is typed wins."""

    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require(len(self.source) > 0, "--source", self.source, "at least one")
        require(self.views is None or parse_views(self.views) is not None, "--views", self.views, "like 5x3 or 1x1")
        require_deadline(self.store_deadline_seconds)
        for name in ("stride", "decoders"):
            value = getattr(self, name)
            require(value is None or value >= 1, flag_name(name), value, "at least 1")
        require(0 <= self.max_failure_rate <= 1, "--max-failure-rate", self.max_failure_rate, "between 0 and 1")
        require(0 <= self.min_score <= 1, "--min-score", self.min_score, "between 0 and 1")
        stride = self.segment_stride
        require(stride is None or self.segments is not None, "--segment-stride", stride, "a stride with --segments")

    def view(self, base: ViewConfig) -> ViewConfig:
        """The checkpoint's view config with what was asked for on the command line put in its place."""
        return override_view(base, self.views, {name: getattr(self, name) for name in VIEW_FLAGS})


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON would give them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
