"""The values that travel between modules. All are frozen; all are validated when they are made."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Span = Literal["stride", "full"]
DecoderName = Literal["vidray", "pytorchvideo"]
VideoStream = Literal["default", "first"]
ViewSpan = Literal["stride", "full", "stream", "segments"]
Aggregation = Literal["prob", "score"]
EmbeddingKind = Literal["mean", "unit"]
"""``mean``: a video's embedding is the mean of its views' features; ``unit``: that mean, scaled to length 1."""

REFERENCE_FPS = 30
"""A clip of ``num_frames`` at ``stride`` lasts ``num_frames * stride / 30`` seconds, whatever the video's own rate
(as in VideoMAE and in the Transformers guide, which assume 30 frames per second)."""


class Status(enum.StrEnum):
    """How one video ended. Every planned video ends as exactly one row with one of these."""

    OK = "ok"
    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    FETCH_FAILED = "fetch_failed"
    CHANGED = "changed"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    NO_VIDEO = "no_video"
    CORRUPT = "corrupt"
    DECODE_TIMEOUT = "decode_timeout"
    DECODER_CRASHED = "decoder_crashed"
    OUT_OF_MEMORY = "out_of_memory"
    MODEL_ERROR = "model_error"

    @property
    def is_transient(self) -> bool:
        """True if the next run should try again by itself: the object or the machine may be to blame, not the video."""
        return self in _TRANSIENT

    @property
    def is_store_failure(self) -> bool:
        """True if the store is to blame, or who may read it: nothing that speaks against the video."""
        return self in _STORE_FAILURES


_STORE_FAILURES = frozenset({Status.NOT_FOUND, Status.ACCESS_DENIED, Status.FETCH_FAILED, Status.CHANGED})
_TRANSIENT = _STORE_FAILURES | {
    Status.DECODE_TIMEOUT,
    Status.DECODER_CRASHED,
    Status.OUT_OF_MEMORY,
    Status.MODEL_ERROR,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TarMember:
    """Where a video lies that is a member of a tar file, or why it cannot be had."""

    shard: str
    """The tar file's URI, without what signs it. (Names may hold ``#``: a member's URI cannot be taken apart.)"""
    offset: int
    """Where its bytes begin in the tar file."""
    shard_bytes: int
    """Size of the tar file."""
    status: str | None = None
    """Found out when the tar file was listed: it ends with this status and is not fetched."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRef:
    """One object that may be a video, as it was listed."""

    uri: str
    """Where it lies, in valid Unicode: what the output's ``uri`` column says."""
    size_bytes: int | None = None
    """Size when listed; None if the source does not tell."""
    etag: str | None = None
    """What identifies this version of the object; None if the source does not tell.
    On local file systems ``<mtime_ns>-<size>-<inode>``."""
    path: bytes | None = None
    """What is opened, only where ``uri`` cannot say it: the path as the file system spells it (bytes that are not
    UTF-8), or the URL with what signs it, which no table may hold. Of a member of a tar file: the tar file's."""
    tar_member: TarMember | None = None
    """Set where the video is a part of an object; ``size_bytes`` is then the part's, ``etag`` the whole object's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSpan:
    """A half-open span of time, ``[start_seconds, end_seconds)``, in exact fractions of a second."""

    index: int
    """Which of the video's clips it is, from 0."""
    start_seconds: Fraction
    end_seconds: Fraction

    def __post_init__(self) -> None:
        if self.end_seconds <= self.start_seconds:
            raise ValueError(f"a clip must end after it starts, got [{self.start_seconds}, {self.end_seconds})")


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeRange:
    """The part of a file that counts as the video: what lies outside is not looked at."""

    start_seconds: float = 0.0
    end_seconds: float | None = None
    """None: where the file ends."""

    def __post_init__(self) -> None:
        if self.start_seconds < 0 or (self.end_seconds is not None and self.end_seconds <= self.start_seconds):
            raise ValueError(f"a time range must end after it starts, got {self.start_seconds} to {self.end_seconds}")


WHOLE_FILE = TimeRange()
"""All of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """The frames of one span of time."""

    frames: np.ndarray
    """(T, H, W, C) uint8 RGB, as displayed (rotation applied)."""
    pts_seconds: np.ndarray
    """(T,) float64: when each frame is shown, from the start of the video stream."""


DECODER_VERSION = 2
"""Which rules of decoding a row was made by. 2: every frame of streams that begin below zero, are joined or lack a time
stamp; frames flagged as interlaced are resized whole; header counts alone are no sign of damage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What decoding found out about one video. None: not known (the file does not say, or was not opened)."""

    duration_seconds: float | None = None
    width: int | None = None
    """Pixels as they are stored, after rotation."""
    height: int | None = None
    fps: float | None = None
    """Average frame rate, frames per second."""
    codec: str | None = None
    num_frames_expected: int | None = None
    """Frames that the container promises in the spans that were asked for."""
    num_frames_decoded: int | None = None
    """Frames found there. Fewer than expected: the file is truncated or damaged."""
    decode_seconds: float | None = None
    """Wall-clock seconds from bytes to views."""
    sample_aspect_ratio: float | None = None
    """Width of a pixel by its height, as displayed: a player shows the picture ``width * sample_aspect_ratio`` wide."""
    num_time_jumps: int | None = None
    """How often the file's time stamps start anew or jump, as where files were joined. The parts follow each other."""
    decoder_version: int = DECODER_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """How a video becomes the views that a model sees. Lives in the checkpoint, so that training and scoring agree."""

    num_frames: int
    """Frames per clip, T."""
    size: int
    """Height and width of a view in pixels."""
    stride: int = 4
    """Frames between two sampled ones at 30 frames per second; a clip lasts ``num_frames * stride / 30`` seconds."""
    span: ViewSpan = "stride"
    """``stride``: clips of that length; ``full``: every clip spans the whole video. ``stream``: all of it, a frame
    every ``stride / 30`` seconds however many that are, in chunks of at most ``num_frames``; ``segments``: all of it,
    window after window, each a clip of ``segment_seconds``. The last two are for scoring only."""
    num_clips: int = 5
    """Clips per video, spread evenly from the first frame to the last; one alone is centred."""
    num_crops: int = 1
    """1: centre crop. 3: three crops along the longer side."""
    short_side: int | None = None
    """The shorter side is resized to this many pixels before cropping. None: ``size``."""
    squeeze: bool = False
    """Both sides are resized to that length, whatever the shape of the picture."""
    square_pixels: bool = False
    """A picture whose pixels are not square is resized from the shape in which a player shows it, instead of the one in
    which it is stored."""
    decoder: DecoderName = "vidray"
    """What decodes: `vidray.video.decoder`, or PyTorchVideo itself, which gives the same frames as they are stored (not
    turned), of the first stream. Both resize alike, but start from other arithmetic: pixels differ by a little."""
    video_stream: VideoStream = "default"
    """Which stream of a file that has several: the one that the container marks as its default, or the ``first``."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, for pixels in [0, 1]: the model sees ``(pixel / 255 - mean) / std``."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    aggregation: Aggregation = "prob"
    """``prob``: mean of the views' probabilities. ``score``: probabilities of the mean of their logits."""
    timeline_seconds: float | None = None
    """With ``span="stream"``: how often the label so far is noted, in seconds of video. None: only at the end."""
    segment_seconds: float | None = None
    """With ``span="segments"``: how long a window is."""
    segment_stride_seconds: float | None = None
    """With ``span="segments"``: from the start of a window to that of the next. None: ``segment_seconds``."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "size", "stride", "num_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_crops not in (1, 3):
            raise ValueError(f"num_crops must be 1 or 3, got {self.num_crops}")
        if self.span not in ("stride", "full", "stream", "segments"):
            raise ValueError(f"span must be 'stride', 'full', 'stream' or 'segments', got {self.span!r}")
        if self.video_stream not in ("default", "first"):
            raise ValueError(f"video_stream must be 'default' or 'first', got {self.video_stream!r}")
        self._check_chunks()
        self._check_segments()
        if self.aggregation not in ("prob", "score"):
            raise ValueError(f"aggregation must be 'prob' or 'score', got {self.aggregation!r}")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(f"short_side must be at least size ({self.size}), got {self.short_side}")
        if any(s <= 0 for s in self.std):
            raise ValueError(f"std must be positive, got {self.std}")

    def _check_chunks(self) -> None:
        if self.decoder not in ("vidray", "pytorchvideo"):
            raise ValueError(f"decoder must be 'vidray' or 'pytorchvideo', got {self.decoder!r}")
        if self.is_chunked and self.decoder != "vidray":
            raise ValueError(f"only decoder 'vidray' can do span '{self.span}', got {self.decoder!r}")
        if self.is_chunked and self.num_views != 1:
            raise ValueError(f"span '{self.span}' is one clip and one crop, got {self.num_clips} and {self.num_crops}")
        if self.timeline_seconds is None:
            return
        if self.span != "stream":
            raise ValueError(f"timeline_seconds needs span 'stream', got {self.span!r}")
        if not math.isfinite(self.timeline_seconds) or self.timeline_interval < self.frame_seconds:
            raise ValueError(
                f"timeline_seconds must be at least {float(self.frame_seconds):g}, one sampled frame at stride "
                f"{self.stride}, got {self.timeline_seconds:g}"
            )

    def _check_segments(self) -> None:
        times = {"segment_seconds": self.segment_seconds, "segment_stride_seconds": self.segment_stride_seconds}
        if self.span != "segments":
            if any(seconds is not None for seconds in times.values()):
                raise ValueError(f"{' and '.join(times)} need span 'segments', got {self.span!r}")
            return
        if self.segment_seconds is None:
            raise ValueError("span 'segments' needs segment_seconds")
        for name, seconds in times.items():
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be a number of seconds above 0, got {seconds}")

    @property
    def is_chunked(self) -> bool:
        """True if a video comes chunk by chunk, as many as it is long: ``num_frames`` pictures at most in each."""
        return self.span in ("stream", "segments")

    @property
    def segment_length(self) -> Fraction:
        """``segment_seconds`` as it was written: 0.7 is 7/10. There must be one."""
        return Fraction(str(self.segment_seconds))

    @property
    def segment_step(self) -> Fraction:
        """From the start of a window to that of the next, in seconds."""
        return Fraction(str(self.segment_stride_seconds or self.segment_seconds))

    @property
    def frame_seconds(self) -> Fraction:
        """Time from one sampled frame to the next with ``span="stream"``."""
        return Fraction(self.stride, REFERENCE_FPS)

    @property
    def timeline_interval(self) -> Fraction:
        """``timeline_seconds`` as it was written: 0.7 is 7/10. There must be one."""
        return Fraction(str(self.timeline_seconds))

    @property
    def clip_seconds(self) -> Fraction:
        """How long a clip lasts with ``span="stride"``."""
        return Fraction(self.num_frames * self.stride, REFERENCE_FPS)

    @property
    def num_views(self) -> int:
        """Views per video: clips × crops."""
        return self.num_clips * self.num_crops

    @property
    def views_shape(self) -> tuple[int, int, int, int, int]:
        """(V, T, H, W, C) of one video's views."""
        return self.num_views, self.num_frames, self.size, self.size, 3

    @property
    def num_bytes(self) -> int:
        """Bytes of one video's uint8 views."""
        return self.num_views * self.num_frames * self.size * self.size * 3

    def to_dict(self) -> dict[str, Any]:
        """Plain values. What came later is left out where it is not used: result keys from before stay."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if (name, value) not in _LATER_DEFAULTS}

    def to_json(self) -> str:
        """Canonical JSON: equal configs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ViewConfig:
        """The config that ``to_dict`` gave, also after a way through JSON."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"unknown view config keys {sorted(unknown)}, allowed are {sorted(known)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)


_LATER_DEFAULTS = (
    ("timeline_seconds", None),
    ("segment_seconds", None),
    ("segment_stride_seconds", None),
    ("squeeze", False),
    ("square_pixels", False),
    ("video_stream", "default"),
    ("decoder", "vidray"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one video may cost before it is given up as a row with a status, and how closed its decoder must be."""

    max_object_bytes: int = 4 * 1024**3
    """Largest object that is fetched, in bytes."""
    max_pixels: int = 8192 * 4320
    """Largest frame that is decoded, in pixels (width × height)."""
    max_frames: int = 1_000_000
    """Most frames that a video may have: nine hours at 30 per second, four and a half at 60."""
    max_duration_seconds: float = 6 * 3600.0
    """Longest video, in seconds."""
    decode_timeout_seconds: float = 60.0
    """Wall-clock seconds for decoding one video or one chunk of a stream; then its decoder is killed."""
    decode_memory_bytes: int = 3 * 1024**3
    """Address space that the decoder process may use beyond what it has at its start."""
    fetch_deadline_seconds: float = 600.0
    """How long one video's object is waited for while its store is away or silent. Time in which bytes flow does not
    count."""
    require_sandbox: bool = False
    """Refuse to decode on machines whose kernel does not close files, network and processes to the decoder
    (docs/security.md)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{field.name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the model says about one video."""

    top_k: tuple[tuple[str, float], ...] = ()
    """(label, score), best first; empty if there is an error, or if no labels were asked for."""
    logits: np.ndarray | None = None
    """(V, num_labels) float32, clip-major as the views are; None where there are no labels."""
    embedding: np.ndarray | None = None
    """(features,) float32, the mean over the views; None if none was asked for, or if there is an error."""
    error: str | None = None
    """Why there are no scores (status ``model_error``); None if all is well."""
