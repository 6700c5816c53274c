"""sampling.py: spans of clips, and the frames of a span."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from pytorchvideo.data.utils import secs_to_pts

from vidray.types import ClipSpan, ViewConfig
from vidray.video.sampling import pts_bounds, random_span, spans_within, spread_spans, subsample_indices


def spans(duration: Fraction | int, **view: object) -> list[tuple[Fraction, Fraction]]:
    config = ViewConfig(num_frames=15, size=32, stride=4, **view)  # type: ignore[arg-type]  # clips of 2 s
    assert config.clip_seconds == 2
    return [
        (span.start_seconds, span.end_seconds)
        for span in spread_spans(duration_seconds=Fraction(duration), view=config)
    ]


F = Fraction
CASES = [
    ("one clip is centred", 10, {"num_clips": 1}, [(4, 6)]),
    ("two clips touch both ends", 10, {"num_clips": 2}, [(0, 2), (8, 10)]),
    ("five clips leave even gaps", 10, {"num_clips": 5}, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
    ("clips overlap if they must", 3, {"num_clips": 3}, [(0, 2), (F(1, 2), F(5, 2)), (1, 3)]),
    ("fractions stay exact", F(1001, 300), {"num_clips": 2}, [(0, 2), (F(401, 300), F(1001, 300))]),
    ("a video as long as a clip", 2, {"num_clips": 3}, [(0, 2)] * 3),
    ("a video shorter than a clip", F(1, 30), {"num_clips": 3}, [(0, F(1, 30))] * 3),
    ("the whole video", 10, {"num_clips": 1, "span": "full"}, [(0, 10)]),
    ("the whole video, twice", 10, {"num_clips": 2, "span": "full"}, [(0, 10)] * 2),
]


@pytest.mark.parametrize(("name", "duration", "view", "expected"), CASES, ids=[case[0] for case in CASES])
def test_spread_spans(name: str, duration: Fraction | int, view: dict, expected: list[tuple]) -> None:
    assert spans(duration, **view) == expected


def test_spans_are_numbered() -> None:
    view = ViewConfig(num_frames=8, size=32, num_clips=4)
    assert [span.index for span in spread_spans(duration_seconds=Fraction(20), view=view)] == [0, 1, 2, 3]


@pytest.mark.parametrize("duration", [0, -1])
def test_a_video_must_last(duration: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        spans(duration, num_clips=1)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 7, 8, 10, 16, 17, 24, 32, 50, 64, 100])
def test_subsample_indices_are_torchs_linspace(num_frames: int) -> None:
    for num_available in [*range(1, 3000), 4999, 10_000, 65_537, 100_000]:
        last = num_available - 1
        expected = torch.linspace(0, last, num_frames).clamp(0, last).long().numpy()
        np.testing.assert_array_equal(subsample_indices(num_available, num_frames), expected, str(num_available))


@pytest.mark.parametrize(("num_available", "num_frames"), [(0, 8), (8, 0)])
def test_subsample_indices_needs_frames(num_available: int, num_frames: int) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        subsample_indices(num_available, num_frames)


@pytest.mark.parametrize("time_base", [Fraction(1, 15360), Fraction(1, 1000), Fraction(1001, 30000), Fraction(1, 25)])
@pytest.mark.parametrize("start_pts", [0, 1, 90000])
def test_pts_bounds_are_pytorchvideos(time_base: Fraction, start_pts: int) -> None:
    seconds = [Fraction(i, 7) for i in range(0, 200, 3)] + [0.1, 1 / 3, 2.5]
    for start, end in itertools.pairwise(seconds):
        expected = tuple(secs_to_pts(second, time_base, start_pts, round_mode="ceil") for second in (start, end))
        assert pts_bounds(start, end, time_base=time_base, start_pts=start_pts) == expected


TRAINING_VIEW = ViewConfig(num_frames=15, size=32, stride=4)  # clips of 2 s


def test_random_spans_are_as_long_as_the_views_and_reach_every_part_of_the_video() -> None:
    spans = [random_span(duration_seconds=F(10), view=TRAINING_VIEW, seed=seed) for seed in range(500)]
    assert {span.end_seconds - span.start_seconds for span in spans} == {2}
    starts = [float(span.start_seconds) for span in spans]
    assert min(starts) >= 0
    assert max(starts) <= 8
    counts, _ = np.histogram(starts, bins=8, range=(0, 8))
    assert (counts > 30).all(), "evenly: 62 are expected in each"


def test_a_random_span_follows_from_its_seed() -> None:
    def draw(seed: int) -> ClipSpan:
        return random_span(duration_seconds=F(10), view=TRAINING_VIEW, seed=seed)

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@pytest.mark.parametrize(("duration", "span"), [(F(3, 2), "stride"), (F(2), "stride"), (F(10), "full")])
def test_a_random_span_of_a_short_video_is_all_of_it(duration: Fraction, span: str) -> None:
    view = ViewConfig(num_frames=15, size=32, stride=4, span=span, num_clips=5)  # type: ignore[arg-type]
    assert random_span(duration_seconds=duration, view=view, seed=1) == ClipSpan(
        index=0, start_seconds=F(0), end_seconds=duration
    )


def test_spans_of_a_part_are_moved_to_where_it_starts() -> None:
    spans = spread_spans(duration_seconds=F(4), view=TRAINING_VIEW)
    moved = spans_within(spans, F(3))
    assert [(s.index, s.start_seconds, s.end_seconds) for s in moved] == [
        (s.index, s.start_seconds + 3, s.end_seconds + 3) for s in spans
    ]
