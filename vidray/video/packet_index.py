"""What the packets of a video stream tell about its frames before any is decoded. Integers only, no codec.

Times are pts in the stream's time base.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vidray.video.sampling import subsample_indices

SEEK_MARGIN = 1024
"""pts by which PyTorchVideo seeks before a span's start. A run begins at the same key frame."""

Bounds = tuple[int, int]
"""The half-open pts range of a span."""


@dataclass(frozen=True, slots=True)
class Run:
    """Spans that are decoded in one go, from one key frame on."""

    first_packet: int
    spans: tuple[int, ...]
    """Indices of the spans, by start."""


@dataclass(kw_only=True, slots=True)
class Timeline:
    """The packets of one stream in the order in which they are stored; as a rule each holds one frame.

    ``add`` all packets, then ``finish``.
    """

    default_duration: int
    """Duration of a frame that does not tell, in pts."""
    packet_pts: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    """Packets at which decoding can begin."""
    key_pts: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    """pts of the packets whose frames are shown (an edit list may hide some)."""
    ends: int | None = None
    """End of the last frame: the largest pts plus duration. None: no frame yet."""
    num_packets: int = 0
    num_shown: int = 0
    last_pts: int | None = None
    """The largest pts that is shown."""
    keeps_packets: bool = True
    """False: only what is counted and compared is kept, a few numbers however long the video. Then no frame can be
    looked up, only decoding from the start makes sense."""
    least_pts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(P,) int64: the smallest pts of each packet and those behind it, which never falls. Complete after ``finish``."""
    num_untimed: int = 0
    """Packets without pts. A few (the first ones after a cut, which cannot be decoded) promise no frame."""
    frame_pts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(N,) int64: the distinct pts of the frames, sorted. Complete after ``finish``."""

    def add(self, *, pts: int | None, duration: int | None, is_key: bool, is_hidden: bool) -> None:
        """Appends a packet."""
        if self.keeps_packets:
            self._keep(pts=pts, is_key=is_key, is_hidden=is_hidden)
        self.num_packets += 1
        if pts is None:
            self.num_untimed += 1
        elif not is_hidden:
            self.num_shown += 1
            end = pts + (duration or self.default_duration)
            self.ends = end if self.ends is None else max(self.ends, end)
            self.last_pts = pts if self.last_pts is None else max(self.last_pts, pts)

    def _keep(self, *, pts: int | None, is_key: bool, is_hidden: bool) -> None:
        if is_key and pts is not None:
            self.keys.append(len(self.packet_pts))
            self.key_pts.append(pts)
        self.packet_pts.append(pts)
        if pts is not None and not is_hidden:
            self.shown.append(pts)

    @property
    def is_timed(self) -> bool:
        """False if most packets lack pts (raw streams): then frames are counted, ``default_duration`` apart."""
        return 2 * self.num_untimed <= self.num_packets

    def finish(self) -> None:
        """Computes what needs all packets."""
        if not self.is_timed:
            self.shown = [i * self.default_duration for i in range(len(self.packet_pts))]
            self.num_shown = self.num_packets
            self.ends = self.num_packets * self.default_duration
            self.last_pts = self.ends - self.default_duration
            self.keys, self.key_pts = [], []  # counting needs the first frame
        self.frame_pts = np.unique(np.array(self.shown, dtype=np.int64))
        never = np.iinfo(np.int64).max
        pts = np.array([never if pts is None else pts for pts in self.packet_pts], dtype=np.int64)
        self.least_pts = np.minimum.accumulate(pts[::-1])[::-1]
        # A key frame is only found by time if those before it are earlier; bisecting needs that too.
        self.key_pts = np.maximum.accumulate(np.array(self.key_pts or [0], dtype=np.int64)).tolist()

    def between(self, bounds: Bounds) -> np.ndarray:
        """The frames that should lie in a span: sorted pts, int64."""
        first, last = np.searchsorted(self.frame_pts, bounds, side="left")
        return self.frame_pts[first:last]

    def landing(self, start_pts: int) -> int:
        """The packet at which PyTorchVideo's seek for a span that starts at ``start_pts`` arrives. (It never seeks
        below zero, so that of a stream that begins there it would miss the beginning.)"""
        at = bisect.bisect_right(self.key_pts, max(start_pts - SEEK_MARGIN, min(start_pts, 0))) - 1
        return self.keys[at] if self.keys and at >= 0 else 0

    def last_before(self, end_pts: int) -> int:
        """The last packet whose frame is shown before ``end_pts``; -1: none."""
        if not self.is_timed:
            return end_pts // self.default_duration - 1
        return int(np.searchsorted(self.least_pts, end_pts, side="left")) - 1

    def runs(self, bounds: Sequence[Bounds]) -> list[Run]:
        """Which spans to decode together: those that begin in what the ones before them decode anyway."""
        runs: list[Run] = []
        reached = -1
        for span in sorted(range(len(bounds)), key=lambda i: bounds[i]):
            first = self.landing(bounds[span][0])
            if runs and first <= reached + 1:
                runs[-1] = Run(runs[-1].first_packet, (*runs[-1].spans, span))
            else:
                runs.append(Run(first, (span,)))
            reached = max(reached, self.last_before(bounds[span][1]))
        return runs


def occupied(bounds: Bounds, frame_pts: np.ndarray) -> Bounds:
    """The span itself if a frame begins in it, else that of the frame on screen then: the last one before, or the
    first one after.

    Args:
        frame_pts: (N,) int64, sorted, at least one.
    """
    first, last = np.searchsorted(frame_pts, bounds, side="left")
    if first < last:
        return bounds
    pts = int(frame_pts[max(int(first) - 1, 0)])
    return pts, pts + 1


def choose(frame_pts: np.ndarray, bounds: Bounds, num_frames: int | None) -> list[int]:
    """Of the sorted pts in a span ``num_frames``, as PyTorchVideo's UniformTemporalSubsample; None: all of them.
    An empty span gives an empty list."""
    first, last = np.searchsorted(frame_pts, bounds, side="left")
    inside = frame_pts[first:last]
    if num_frames is not None and len(inside):
        inside = inside[subsample_indices(len(inside), num_frames)]
    return inside.tolist()
