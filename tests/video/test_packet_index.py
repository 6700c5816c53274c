"""packet_index.py: what packets tell about frames. Tiny integers."""

from __future__ import annotations

import numpy as np

from vidray.video.packet_index import Run, Timeline, choose, occupied

STEP = 1000


def timeline(num_packets: int, *, key_every: int = 10, pts: list[int | None] | None = None) -> Timeline:
    made = Timeline(default_duration=STEP)
    for i in range(num_packets):
        shown_at = pts[i] if pts is not None else i * STEP
        made.add(pts=shown_at, duration=None, is_key=i % key_every == 0, is_hidden=False)
    made.finish()
    return made


def test_frames_are_sorted_by_time_and_counted_once() -> None:
    made = timeline(5, pts=[0, 3000, 1000, 1000, 2000])
    assert made.frame_pts.tolist() == [0, 1000, 2000, 3000]
    assert made.ends == 4000


def test_spans_are_half_open() -> None:
    assert timeline(5).between((1000, 3000)).tolist() == [1000, 2000]


def test_hidden_packets_make_no_frame() -> None:
    made = Timeline(default_duration=STEP)
    made.add(pts=0, duration=STEP, is_key=True, is_hidden=True)
    made.add(pts=STEP, duration=5, is_key=False, is_hidden=False)
    made.finish()
    assert made.frame_pts.tolist() == [STEP]
    assert made.ends == STEP + 5


def test_packets_without_time_are_counted() -> None:
    made = timeline(3, pts=[None, None, None])
    assert not made.is_timed
    assert made.frame_pts.tolist() == [0, 1000, 2000]
    assert made.landing(99_000) == 0


def test_a_run_begins_at_the_key_frame_before_pytorchvideos_margin() -> None:
    made = timeline(40)
    assert [made.landing(pts) for pts in (0, 10_500, 11_024, 39_000)] == [0, 0, 10, 30]


def test_far_spans_are_decoded_apart_and_near_ones_together() -> None:
    made = timeline(100)
    assert made.runs([(0, 3000), (50_000, 53_000), (54_000, 57_000)]) == [Run(0, (0,)), Run(40, (1, 2))]
    assert made.runs([(0, 95_000), (50_000, 53_000)]) == [Run(0, (0, 1))]


def test_an_empty_span_shows_the_frame_before_it() -> None:
    pts = np.array([10, 20, 90])
    assert occupied((15, 25), pts) == (15, 25)
    assert occupied((30, 80), pts) == (20, 21)
    assert occupied((0, 5), pts) == (10, 11)


def test_choose_takes_evenly_spaced_frames_of_the_span() -> None:
    pts = np.arange(0, 100, 10)
    assert choose(pts, (20, 70), 3) == [20, 40, 60]
    assert choose(pts, (20, 70), None) == [20, 30, 40, 50, 60]
    assert choose(pts, (21, 29), 3) == []
