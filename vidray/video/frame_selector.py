"""Chooses frames out of a stream that is decoded as it goes, and makes sure that they are PyTorchVideo's.

The packets predict the frames, so the kept ones are known before the first is decoded. Every decoded frame is held
against the prediction; where it was wrong (damaged files, wrong time stamps), the runs are decoded once more, now
knowing their frames. Pictures of kept frames are all that is held in memory. Knows no codec.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vidray.errors import VideoError
from vidray.types import Status
from vidray.video.packet_index import Bounds, Run, Timeline, choose, occupied

MAX_PASSES = 4
"""Prediction; correction; correction where a span turned out empty; one to spare. Skipping comes before."""

_NEVER = 2**63 - 1
"""After all packets and pts."""
_SPANS_AT_ONCE = 16
"""Of a long video whose frames are not those that its packets announce."""

Convert = Callable[[Any], np.ndarray]
"""Makes a picture of a frame. It must not keep the frame, whose memory is large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledClip:
    """The kept frames of one span, in order. Frames of a short clip repeat: the same array, several times."""

    pts: list[int]
    """(T,) in the stream's time base."""
    pictures: list[np.ndarray]
    """(T,) what ``convert`` made of each frame."""


def pictures_at(
    times: Iterator[int],
    frames: Iterator[tuple[int, Any]],
    *,
    convert: Convert,
    end_of: Callable[[int], float],
) -> Iterator[np.ndarray]:
    """The picture on screen at each of some times: of the last frame that begins by then, or else of the first.

    Args:
        times: pts, sorted.
        frames: (pts, frame) as they are decoded. All are read, also those that come after the last time.
        convert: makes a picture of a frame; not asked again while the same frame stays on screen.
        end_of: when the frame of this pts leaves the screen, if none comes after it.

    Raises:
        VideoError: CORRUPT if there is no frame.
    """
    time = next(times, None)
    for frame, end in _on_screen(frames, end_of):
        picture = None
        while time is not None and time < end:
            picture = convert(frame) if picture is None else picture
            yield picture
            time = next(times, None)


def _on_screen(frames: Iterator[tuple[int, Any]], end_of: Callable[[int], float]) -> Iterator[tuple[Any, float]]:
    """Each frame and when the next takes its place. One whose pts is not above those before it never gets there."""
    last: tuple[int, Any] | None = None
    for pts, frame in frames:
        if last is not None and pts <= last[0]:
            continue
        if last is not None:
            yield last[1], pts
        last = pts, frame
    if last is None:
        raise VideoError(Status.CORRUPT, "no frame could be decoded")
    yield last[1], end_of(last[0])


class FrameSource(Protocol):
    """A stream that can be decoded from any of its key frames on."""

    timeline: Timeline
    is_doubtful: bool
    """Set by ``decoded`` when something did not decode, or when a packet may hold half a frame."""

    @property
    def may_skip(self) -> bool:
        """True if frames that no other refers to may be left out undecoded."""

    @property
    def stops_early(self) -> bool:
        """True if PyTorchVideo stops at the first frame from a span's end on; it decodes some streams to their end."""

    def decoded(self, first_packet: int, needed: set[int] | None) -> Iterator[tuple[int, int, Any]]:
        """Frames from a packet on, as the codec shows them: (last packet fed, pts, frame).

        Args:
            needed: pts of frames that must come out; others may be left out if no other refers to them. None: all.
        """


@dataclass(slots=True)
class _OpenSpan:
    """A span whose frames are being decoded."""

    bounds: Bounds
    chosen: list[int]
    """pts of its frames, as predicted."""
    seen: set[int] = field(default_factory=set)
    last_packet: int = -1
    """Until this packet is fed, frames of the span may come."""

    @property
    def seen_pts(self) -> np.ndarray:
        return np.array(sorted(self.seen), dtype=np.int64)


class _Counter:
    """Counts the frames of spans that overlap, sorted by start, each once."""

    def __init__(self) -> None:
        self._total, self._reached = 0, -math.inf

    def add(self, pts: np.ndarray, end: int) -> int:
        """The frames so far, with those of a span that ends before ``end``."""
        self._total += int((pts >= self._reached).sum())
        self._reached = max(self._reached, end)
        return self._total


class Selector:
    """Samples all spans of one video. ``num_expected`` and ``num_decoded`` count the frames in them afterwards."""

    def __init__(self, source: FrameSource, *, num_frames: int | None, convert: Convert) -> None:
        """Args:
        num_frames: per span, chosen as PyTorchVideo's UniformTemporalSubsample; None: all.
        """
        self._source, self._timeline = source, source.timeline
        self._num_frames, self._convert = num_frames, convert
        self._pictures: dict[int, np.ndarray] = {}
        self.num_expected = 0
        self.num_decoded = 0
        self.decoded_pts = np.zeros(0, np.int64)
        """The distinct pts of those decoded, sorted, after `sample`."""

    def sample(self, asked: Sequence[Bounds]) -> list[SampledClip]:
        """The clips of these spans. A span in which no frame begins shows the frame before it, as a player would.

        Raises:
            VideoError: CORRUPT if no frame decodes.
        """
        bounds = [occupied(b, self._timeline.frame_pts) for b in asked]
        chosen = self._choose([self._timeline.frame_pts] * len(bounds), bounds)
        if self._source.may_skip and self._all_as_predicted(bounds, chosen):
            return self._clips(chosen, bounds, [self._timeline.between(b) for b in bounds])
        for _ in range(MAX_PASSES):
            seen = self._pass(bounds, chosen, skip=False)
            actual = self._choose(seen, bounds)
            if actual == chosen:
                return self._clips(chosen, bounds, seen)
            if not all(actual):
                decodable = np.unique(np.concatenate(seen)) if any(actual) else self._all_decodable()
                bounds = [occupied(b, decodable) for b in bounds]
                actual = self._choose([decodable] * len(bounds), bounds)
            chosen = actual
        raise VideoError(Status.CORRUPT, "frames decode differently each time")

    def stream(self, asked: Sequence[Bounds]) -> Iterator[SampledClip]:
        """The clips of these spans, sorted by start, as `sample` gives them, each when its last frame is decoded.

        Each frame is decoded once, and only pictures of unfinished spans are held. From a span on whose frames are not
        those that were predicted, the spans are sampled a few at a time.

        Raises:
            VideoError: CORRUPT if no frame decodes.
        """
        bounds = [occupied(b, self._timeline.frame_pts) for b in asked]
        self.num_expected = len(np.unique(np.concatenate([self._timeline.between(b) for b in bounds])))
        counted = _Counter()
        num_done = 0
        for skips in (True, False) if self._source.may_skip else (False,):
            for span in self._predicted(bounds[num_done:], skips=skips):
                num_done += 1
                decoded = self._timeline.between(span.bounds) if skips else span.seen_pts
                self.num_decoded = counted.add(decoded, span.bounds[1])
                yield SampledClip(pts=span.chosen, pictures=[self._pictures[pts] for pts in span.chosen])
            self._pictures.clear()
        for start in range(num_done, len(asked), _SPANS_AT_ONCE):
            few = Selector(self._source, num_frames=self._num_frames, convert=self._convert)
            clips = few.sample(asked[start : start + _SPANS_AT_ONCE])
            self.num_decoded = counted.add(few.decoded_pts, bounds[start : start + _SPANS_AT_ONCE][-1][1])
            self.num_expected = max(self.num_expected, self.num_decoded)
            yield from clips

    def _predicted(self, bounds: Sequence[Bounds], *, skips: bool) -> Iterator[_OpenSpan]:
        """The spans, each when its frames are decoded, up to the first whose frames are not as predicted. Pictures of
        the last one are there until the next is asked for."""
        source, timeline = self._source, self._timeline
        source.is_doubtful = False
        chosen = self._choose([timeline.frame_pts] * len(bounds), bounds)
        needed = {pts for clip in chosen for pts in clip} if skips else None
        upcoming, waiting = deque(zip(bounds, chosen, strict=True)), deque[_OpenSpan]()
        if not upcoming:
            return
        frames = source.decoded(timeline.landing(bounds[0][0]), needed)
        for packet, pts, frame in itertools.chain(frames, [(_NEVER, _NEVER, None)]):
            while upcoming and upcoming[0][0][0] <= pts:
                span = _OpenSpan(*upcoming.popleft())
                span.last_packet = -1 if source.stops_early else timeline.last_before(span.bounds[1])
                waiting.append(span)
            for span in waiting:
                if span.bounds[0] <= pts < span.bounds[1]:
                    span.seen.add(pts)
                    if pts in span.chosen and pts not in self._pictures:
                        self._pictures[pts] = self._convert(frame)
            while waiting and pts >= waiting[0].bounds[1] and packet >= waiting[0].last_packet:
                span = waiting[0]
                if skips:  # as in `sample`
                    is_as_predicted = not source.is_doubtful and span.seen.issuperset(span.chosen)
                else:
                    is_as_predicted = choose(span.seen_pts, span.bounds, self._num_frames) == span.chosen
                if not is_as_predicted:
                    return
                yield waiting.popleft()
                first = waiting[0].bounds[0] if waiting else pts
                self._pictures = {at: picture for at, picture in self._pictures.items() if at >= first}

    def _choose(self, frame_pts: Sequence[np.ndarray], bounds: Sequence[Bounds]) -> list[list[int]]:
        return [choose(pts, b, self._num_frames) for pts, b in zip(frame_pts, bounds, strict=True)]

    def _all_as_predicted(self, bounds: Sequence[Bounds], chosen: Sequence[list[int]]) -> bool:
        """Decodes with skipping. True if nothing hints at a skipped frame that would not have come out: nothing
        doubtful, no frame missing that was needed, none that was not expected."""
        seen = self._pass(bounds, chosen, skip=True)
        is_as_predicted = not self._source.is_doubtful and all(
            np.isin(clip, pts).all() and np.isin(pts, self._timeline.between(b)).all()
            for b, clip, pts in zip(bounds, chosen, seen, strict=True)
        )
        if not is_as_predicted:
            self._pictures.clear()
        return is_as_predicted

    def _pass(self, bounds: Sequence[Bounds], chosen: Sequence[list[int]], *, skip: bool) -> list[np.ndarray]:
        """Decodes all spans once; keeps pictures of the chosen frames that it does not have yet.

        Returns:
            The distinct pts seen in each span, sorted.
        """
        self._source.is_doubtful = False
        had = frozenset(self._pictures)
        seen: list[set[int]] = [set() for _ in bounds]
        for run in self._timeline.runs(bounds):
            wanted = {pts for span in run.spans for pts in chosen[span]}
            for pts, frame in self._frames_of(run, bounds, seen, wanted if skip else None):
                if pts in wanted and pts not in had:
                    self._pictures[pts] = self._convert(frame)
        return [np.array(sorted(pts), dtype=np.int64) for pts in seen]

    def _frames_of(
        self, run: Run, bounds: Sequence[Bounds], seen: Sequence[set[int]], needed: set[int] | None
    ) -> Iterator[tuple[int, Any]]:
        """The frames in a run's spans, each noted in ``seen`` of its spans.

        A span ends at the first frame from its end on, as in PyTorchVideo: what comes later, although its pts is
        smaller (wrong time stamps), does not count. Where PyTorchVideo does not stop, the span goes on as long as
        packets promise frames for it.
        """
        last = {
            span: -1 if self._source.stops_early else self._timeline.last_before(bounds[span][1]) for span in run.spans
        }
        active = list(run.spans)
        for packet, pts, frame in self._source.decoded(run.first_packet, needed):
            inside = [span for span in active if bounds[span][0] <= pts < bounds[span][1]]
            for span in inside:
                seen[span].add(pts)
            if inside:
                yield pts, frame
            active = [span for span in active if pts < bounds[span][1] or packet < last[span]]
            if not active:
                return

    def _all_decodable(self) -> np.ndarray:
        """All pts that decode, sorted, at least one."""
        pts = np.unique(np.array([pts for _, pts, _ in self._source.decoded(0, None)], dtype=np.int64))
        if not len(pts):
            raise VideoError(Status.CORRUPT, "no frame could be decoded")
        return pts

    def _clips(
        self, chosen: Sequence[list[int]], bounds: Sequence[Bounds], seen: Sequence[np.ndarray]
    ) -> list[SampledClip]:
        expected = np.unique(np.concatenate([self._timeline.between(b) for b in bounds]))
        self.decoded_pts = np.unique(np.concatenate(seen))
        self.num_decoded = len(self.decoded_pts)
        self.num_expected = max(len(expected), self.num_decoded)
        return [SampledClip(pts=clip, pictures=[self._pictures[pts] for pts in clip]) for clip in chosen]
