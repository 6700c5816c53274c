"""What a run tells a monitoring system while it goes: the series, and where their values go.

By default they go nowhere. Within Ray, `vidray.cluster` hands them to Ray's own metrics, which Prometheus reads from
each node. No series has a label for a run or a video, so their number never grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One figure over time."""

    name: str
    kind: Literal["counter", "gauge"]
    """A counter is added to, a gauge is set."""
    text: str
    tags: tuple[str, ...] = ()
    """Names of the labels that a value has."""

    @property
    def exposed_name(self) -> str:
        """What Prometheus finds it under: Ray puts its own name before, and ``_total`` behind counters."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


VIDEOS = Series(name="vidray_videos", kind="counter", text="Videos with a row, by status", tags=("status",))
STAGE_SECONDS = Series(
    name="vidray_stage_seconds",
    kind="counter",
    text="Seconds that workers were busy, by stage: fetch, decode, predict",
    tags=("stage",),
)
BYTES = Series(name="vidray_object_bytes", kind="counter", text="Bytes of the objects whose videos have a row")
ROWS_SEALED = Series(name="vidray_rows_sealed", kind="counter", text="Rows in parts that are written")
VIDEOS_LEFT = Series(name="vidray_videos_left", kind="gauge", text="Planned videos that have no row yet")
BUSY_SHARE = Series(
    name="vidray_busy_share",
    kind="gauge",
    text="Share of the time since the first prediction in which a stage's workers were busy",
    tags=("stage",),
)
TRAIN_STEPS = Series(name="vidray_train_steps", kind="counter", text="Training steps")
TRAIN_SECONDS = Series(name="vidray_train_seconds", kind="counter", text="Seconds of training steps")
TRAIN_WAIT_SECONDS = Series(
    name="vidray_train_data_wait_seconds", kind="counter", text="Seconds of training steps that waited for clips"
)
TRAIN_STEPS_LEFT = Series(name="vidray_train_steps_left", kind="gauge", text="Training steps to come")

SERIES = (
    VIDEOS, STAGE_SECONDS, BYTES, ROWS_SEALED, VIDEOS_LEFT, BUSY_SHARE,
    TRAIN_STEPS, TRAIN_SECONDS, TRAIN_WAIT_SECONDS, TRAIN_STEPS_LEFT,
)  # fmt: skip

Sink = Callable[[Series, float, dict[str, str]], None]
_sink: Sink | None = None


def configure(sink: Sink | None) -> None:
    """Where values go from now on; None: nowhere."""
    global _sink
    _sink = sink


def record(series: Series, value: float, **tags: str) -> None:
    """Add to a counter, or set a gauge."""
    if _sink is not None:
        _sink(series, value, tags)
