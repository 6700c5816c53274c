"""What a scoring run is asked for: one definition for the flags, the config file and the library."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from vidray import webhook
from vidray.errors import UsageError
from vidray.flags import (
    VIEW_FLAGS,
    flag_name,
    override_view,
    parse_pool,
    parse_views,
    require,
    require_deadline,
    shown_as,
)
from vidray.logs import LogFormat
from vidray.storage.retry import STORE_DEADLINE_SECONDS
from vidray.types import Aggregation, DecoderName, EmbeddingKind, Limits, Span, VideoStream, ViewConfig

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
RunnerName = Literal["auto", "local", "ray"]

CPUS_PER_PREDICTOR = 8
"""A model on CPUs scales to about eight threads; beyond that, further replicas do better."""
MAX_CHUNK_FRAMES = 8
"""Frames that a stream's model sees at once. On CPUs longer chunks leave the caches, shorter ones cost more calls
(MoViNet-A0 on one thread: 71 frames/s with 4, 91 with 8, 78 with 16, 75 with 50); a GPU gets many videos at once."""

MIN_SEGMENT_SECONDS = 0.1
"""A video of six hours would have more than 200,000 windows."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score every video of the sources with a model, into Parquet with one row per video."""

    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown_as("URI")]
    """Where the videos are; repeat the flag for several. A folder or prefix, a glob, one video, or a manifest
    (.csv, .jsonl, .parquet with a `uri` column; `start_seconds` and `end_seconds` bound a video), on any file system:
    a path, s3://, gs://, az://, https://."""
    model: Annotated[str, shown_as("URI|HUB_ID")]
    """A checkpoint folder (local, s3://, gs://, az://) or a Hugging Face Hub id."""
    output: Annotated[str, shown_as("URI")]
    """The folder that the results go to: predictions/ and _runs/. Give every night the same one."""
    labels: Annotated[str | None, shown_as("LABEL;…|FILE")] = None
    """For models that compare videos with texts (X-CLIP): what to tell apart, with semicolons between, or a file with a
    label on each line."""
    prompt: Annotated[str, shown_as("TEXT")] = "{}"
    """With --labels: what such a model reads for a label, such as "a video of {}"."""

    extensions: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown_as(".EXT")] = ()
    """Also take files with this extension from folders; repeat the flag for several. The usual ones (.mp4, .mkv, …) are
    taken anyway, and a run counts what it leaves."""

    keep_columns: Annotated[str | None, shown_as("NAME,…|all")] = None
    """Columns of the manifests that come along into the prediction rows, with their types: names with commas between
    them, or `all`. From tar files: keys of a video's .json, and `cls` and `txt` for its .cls and .txt."""

    views: Annotated[str | None, shown_as("CLIPSxCROPS")] = None
    """Views per video as CLIPSxCROPS: 5x3, 5x1, 1x1. Default: what the checkpoint was validated with, else 5x1."""
    span: Span | None = None
    """What a clip spans: `stride` (num_frames × stride / 30 seconds) or `full` (the whole video).
    Default: from the checkpoint."""
    stride: Annotated[int | None, shown_as("INT")] = None
    """Frames between two sampled frames, at 30 frames per second. Default: from the checkpoint, else 4."""
    aggregation: Aggregation | None = None
    """How views become one answer: `prob` (mean of probabilities) or `score` (mean of logits).
    Default: from the checkpoint, else prob."""
    square_pixels: bool = False
    """Resize pictures whose pixels are not square from the shape in which a player shows them; for models that were
    trained so. Default: from the checkpoint, which mostly takes pixels as they are stored."""
    video_stream: VideoStream | None = None
    """Which stream of a file with several: the one marked as `default`, or the `first`.
    Default: from the checkpoint, else default."""
    decoder: DecoderName | None = None
    """What decodes: `vidray`, or PyTorchVideo's `EncodedVideo` (`pytorchvideo`), which gives the same frames for
    several times the CPU time. Default: from the checkpoint, else vidray."""
    top_k: int = 5
    """Labels kept per video in the column top_k."""
    embeddings: bool = False
    """Also keep what the classifier sees of a video, the mean of its views' features, in the column embedding (with
    --segments: of each window too): to search and group videos by what is in them. Labels and scores stay the same."""
    normalize: bool = False
    """With --embeddings: scale each embedding to length 1."""
    no_labels: bool = False
    """With --embeddings: keep nothing else, no label and no score. The model may be a pre-trained backbone, which has
    none."""
    streaming: bool = False
    """Score whole videos frame by frame, in memory that does not grow with their length: every frame at the model's own
    rate (--stride), hours of them. For networks that keep a state: MoViNet stream."""
    timeline: Annotated[float | None, shown_as("SECONDS")] = None
    """With --streaming: also keep the label so far at each multiple of SECONDS of video, in the column timeline."""

    segments: Annotated[float | Literal["clip"] | None, shown_as("SECONDS|clip")] = None
    """When does it happen: score windows of SECONDS, one after the other over the whole video, into the column
    segments; `clip`: windows as long as the checkpoint's own clips. The video's label is that of all its windows."""
    segment_stride: Annotated[float | None, shown_as("SECONDS")] = None
    """From the start of a window to that of the next. Default: the length of a window."""

    device: Device = "auto"
    """Where the model runs. auto: on the cluster's GPUs if it has any, else on CPUs."""
    precision: Precision = "auto"
    """Arithmetic of the model. auto: bf16 on GPUs, fp32 on CPUs."""
    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster afterwards."""
    batch_size: Annotated[int | None, shown_as("INT")] = None
    """How many views go through the model together. Default: 16 on a GPU; on a CPU as many as make 2.5 MB, so that they
    stay in its caches. With --streaming or --segments: how many videos a model works on at a time. Default: 16 on a
    GPU, on a CPU two per thread."""

    notify: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown_as("URL|$NAME")] = ()
    """A webhook of Slack, Teams or any other that takes JSON, to be told how the command ended; or the environment
    variable that holds it, since such a URL is a secret. May be repeated. A failure of it changes nothing else."""
    notify_text: Annotated[str, shown_as("TEXT")] = webhook.DEFAULT_TEXT
    """What it is told, with names like {outcome}, {message}, {num_failed}, {report} in braces."""
    log_format: LogFormat = "text"
    """What is printed on standard error: `text` for people, or for each event a line of `json` with time, level, run,
    node and actor."""
    config: Annotated[str | None, shown_as("FILE")] = None
    """A YAML file with any of these names and their values, `source: [a, b]` for several. What is typed wins."""
    run_id: Annotated[str | None, shown_as("NAME")] = None
    """Name of the run: letters, digits, `.`, `_`, `-`. Default: the newest unfinished run of this configuration is
    resumed; if there is none, a fresh unique name."""
    retry_failed: bool = False
    """Also score again what failed before, whatever the reason."""
    max_attempts: int = 3
    """How often a video is tried in all, a night at a time, when it fails for a reason that may be its own and may pass
    (timed out, ran out of memory …). Failures of the store do not count: they are tried again after 1, 2, 4 … at most
    30 days."""
    max_failure_rate: float = 0.05
    """Exit with code 3 if more than this share of the videos tried failed, or of those listed have no scores."""
    limit: Annotated[int | None, shown_as("N")] = None
    """Try a bucket: score N of its videos, drawn at random but the same ones each time. Their scores
    count in the nights to come. Default: all."""
    dry_run: bool = False
    """Say what a run would do, and do nothing."""
    wait: bool = False
    """Where another run works on the output, wait for its end. Without it the command exits with code 5."""
    allow_unconditional_store: bool = False
    """Accept an output store without conditional writes. Then only the lease keeps two runs apart."""
    secret_parameters: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown_as("NAME")] = ()
    """A parameter of http URLs that signs them or holds a token; those of S3, GCS, Azure and CloudFront are known.
    URLs that differ only in such parameters are one object, and they are stored nowhere. May be repeated."""
    store_deadline_seconds: float = STORE_DEADLINE_SECONDS
    """How many seconds to go on trying when a store does not answer, before the command gives up."""

    rows_per_part: Annotated[int | None, shown_as("INT")] = None
    """Videos per Parquet part, the unit of commit: a crash costs at most the parts in flight.
    Default: a hundredth of the run, between 50 and 4000; with --streaming or --segments between 5 and 500, with
    embeddings of windows at most 50."""
    decoders: Annotated[str | None, shown_as("N|MIN:MAX")] = None
    """Decoding processes, as N or MIN:MAX. Default: from the cluster's CPUs."""
    predictors: Annotated[str | None, shown_as("N|MIN:MAX")] = None
    """Model replicas, as N or MIN:MAX. Default: one per GPU, or from the cluster's CPUs."""
    fetch_threads: int = 8
    """Objects that each decoding process fetches at a time."""
    fetch_memory_bytes: Annotated[int | None, shown_as("INT")] = None
    """Bytes of fetched objects that wait for one decoder, at most; a larger object waits alone. Default: an eighth of
    the machine's memory, shared by its CPUs. (With --streaming or --segments: of one worker; default: an eighth.)"""
    range_reads_above_bytes: int = 64 * 1024**2
    """Of a larger object only the parts are fetched that its clips need, where it is an MP4 or QuickTime file with one
    index; all others are fetched whole."""
    runner: RunnerName = "auto"
    """What moves the work: `local`, processes of this machine alone; `ray`, Ray Data. auto: ray where a Ray cluster is
    named (--ray-address, $RAY_ADDRESS, which `ray job submit` sets), else local."""
    ray_address: Annotated[str | None, shown_as("ADDRESS")] = None
    """Ray cluster to use. Default: $RAY_ADDRESS; with --runner ray and neither, Ray is started on this machine."""
    wait_for_nodes: float = 0.0
    """Seconds to wait for nodes of a Ray cluster, where too few are there and no autoscaler announces more."""
    stall_timeout_seconds: float | None = None
    """Give up when no video has finished for this long (nodes that never come, for instance).
    Default: 1800; with --streaming or --segments, where one video may take hours, 86400."""

    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require(len(self.source) > 0, "--source", self.source, "at least one")
        for extension in self.extensions:
            good = re.fullmatch(r"\.[^./\s]+(\.[^./\s]+)*", extension) is not None
            require(good and extension == extension.lower(), "--extensions", extension, "like .asf, in lower case")
        self._check_no_labels()
        require(not (self.embeddings and self.labels), "--embeddings", self.embeddings, "not with --labels")
        require(self.prompt == "{}" or self.labels is not None, "--prompt", self.prompt, "a prompt with --labels")
        keep = self.keep_columns
        require(keep is None or all(self.kept_names), "--keep-columns", keep, "names like camera,site, or all")
        require(self.views is None or parse_views(self.views) is not None, "--views", self.views, "like 5x3 or 1x1")
        for flag in ("top_k", "max_attempts", "fetch_threads"):
            require(getattr(self, flag) >= 1, flag_name(flag), getattr(self, flag), "at least 1")
        for flag in ("stride", "batch_size", "rows_per_part", "fetch_memory_bytes", "limit"):
            value = getattr(self, flag)
            require(value is None or value >= 1, flag_name(flag), value, "at least 1")
        least = self.range_reads_above_bytes
        require(least >= 0, "--range-reads-above-bytes", least, "at least 0")
        require(0 <= self.max_failure_rate <= 1, "--max-failure-rate", self.max_failure_rate, "between 0 and 1")
        webhook.check(self.notify, self.notify_text)
        require(self.wait_for_nodes >= 0, "--wait-for-nodes", self.wait_for_nodes, "at least 0")
        require_deadline(self.store_deadline_seconds)
        stall = self.stall_timeout_seconds
        require(stall is None or stall > 0, "--stall-timeout-seconds", stall, "above 0")
        if self.run_id is not None:
            ok = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", self.run_id)
            require(
                bool(ok), "--run-id", self.run_id, "letters, digits, '.', '_', '-', starting with a letter or digit"
            )
        for flag in ("decoders", "predictors"):
            value = getattr(self, flag)
            require(value is None or parse_pool(value) is not None, f"--{flag}", value, "N or MIN:MAX, at least 1")
        require(
            self.runner != "local" or self.ray_address is None,
            "--ray-address",
            self.ray_address,
            "none with --runner local, which uses no cluster",
        )
        require(self.timeline is None or self.streaming, "--timeline", self.timeline, "a timeline with --streaming")
        stride = self.segment_stride
        require(stride is None or self.segments is not None, "--segment-stride", stride, "a stride with --segments")
        normalize = self.normalize
        require(self.embeddings or not normalize, "--normalize", normalize, "only with --embeddings")
        by = "--embeddings, whose scores are to be those without"
        require(not (self.embeddings and self.compile), "--compile", self.compile, f"not with {by}")
        self._check_times()
        if self.is_chunked:
            self._check_chunked("--streaming" if self.streaming else "--segments")

    def _check_no_labels(self) -> None:
        if not self.no_labels:
            return
        for flag in ("labels", "timeline"):
            got = getattr(self, flag)
            require(got is None, f"--{flag}", got, "none with --no-labels")
        require(self.embeddings, "--no-labels", True, "only with --embeddings: nothing would be kept of a video")

    def _check_times(self) -> None:
        seconds = self.timeline
        require(seconds is None or 0 < seconds < math.inf, "--timeline", seconds, "a number of seconds above 0")
        for flag in ("segments", "segment_stride"):
            value = getattr(self, flag)
            good = value in (None, "clip") or MIN_SEGMENT_SECONDS <= value < math.inf
            require(good, flag_name(flag), value, f"a number of seconds, at least {MIN_SEGMENT_SECONDS}")

    def _check_chunked(self, by: str) -> None:
        """Raise UsageError for what means nothing to a video that is seen whole, rather than leave it out."""
        require(self.views in (None, "1x1"), "--views", self.views, f"1x1 with {by}, which sees the whole video once")
        if self.streaming:
            require(self.segments is None, "--segments", self.segments, "none with --streaming; take --timeline")
            require(self.span is None, "--span", self.span, "none with --streaming, which always sees the whole video")
            require(not self.embeddings, "--embeddings", self.embeddings, "not with --streaming")
        require(self.decoder != "pytorchvideo", "--decoder", self.decoder, f"vidray with {by}")
        require(self.decoders is None, "--decoders", self.decoders, f"none with {by}; take --batch-size")
        require(not self.compile, "--compile", self.compile, f"not with {by}, whose batches differ in size")

    @property
    def embedding(self) -> EmbeddingKind | None:
        """Which embeddings are asked for, if any."""
        if not self.embeddings:
            return None
        return "unit" if self.normalize else "mean"

    @property
    def is_chunked(self) -> bool:
        """True if each video is seen from its beginning to its end, in chunks."""
        return self.streaming or self.segments is not None

    @property
    def kept_names(self) -> list[str]:
        """``keep_columns``, apart."""
        return [name.strip() for name in (self.keep_columns or "").split(",")]

    def streams_per_worker(self, num_threads: int | None) -> int:
        """Videos side by side with --streaming or --segments; ``num_threads``: of a model on CPUs, None on a GPU."""
        return self.batch_size or (16 if num_threads is None else 2 * num_threads)

    @property
    def threads_that_fetch(self) -> int:
        """Of a decoder. Where videos are seen whole, each decoder fetches its own next one."""
        return 1 if self.is_chunked else self.fetch_threads

    @property
    def stall_seconds(self) -> float:
        """``stall_timeout_seconds``, or its default."""
        return self.stall_timeout_seconds or (86400.0 if self.is_chunked else 1800.0)

    def effective_view(self, checkpoint_view: ViewConfig) -> ViewConfig:
        """The checkpoint's view config with what was asked for on the command line put in its place.

        Raises UsageError if --timeline asks for more than one entry per sampled frame, or if the model was trained on
        whole videos and windows are asked for.
        """
        asked: dict[str, Any] = {name: getattr(self, name) for name in VIEW_FLAGS}
        if self.streaming:
            asked |= {"span": "stream", "num_clips": 1, "num_crops": 1, "timeline_seconds": self.timeline}
            asked["decoder"] = "vidray"
            asked["num_frames"] = min(checkpoint_view.num_frames, MAX_CHUNK_FRAMES)
        elif self.segments is not None:
            asked |= self._segments(checkpoint_view)
        try:
            return override_view(checkpoint_view, self.views, asked)
        except ValueError as error:
            raise UsageError(f"--timeline: {error}" if self.timeline else str(error)) from error

    def _segments(self, checkpoint_view: ViewConfig) -> dict[str, Any]:
        if checkpoint_view.span == "full" and self.span != "full":
            raise UsageError(
                "--segments: this checkpoint was trained on whole videos (span full), of which a window is a part that "
                "it has never seen; --span full scores windows with it nevertheless"
            )
        seconds = float(checkpoint_view.clip_seconds) if self.segments == "clip" else self.segments
        windows = {"segment_seconds": seconds, "segment_stride_seconds": self.segment_stride}
        return windows | {"span": "segments", "num_clips": 1, "num_crops": 1, "decoder": "vidray"}
