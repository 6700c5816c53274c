"""Every video comes exactly once per epoch, whoever asks and wherever one begins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidray.training.data.order import PADDING, clip_seed, epoch_order, rank_slots


@settings(max_examples=100, deadline=None)
@given(
    num_samples=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 3),
)
def test_the_ranks_together_see_each_video_once_per_epoch(
    num_samples: int, batch_size: int, world_size: int, seed: int, epoch: int
) -> None:
    order = epoch_order(np.zeros(num_samples, np.int64), seed=seed, epoch=epoch)
    seen: list[int] = []
    for start in range(0, num_samples, batch_size):
        parts = [
            rank_slots(num_samples, start, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert {len(part) for part in parts} == {-(-batch_size // world_size)}
        positions = np.concatenate(parts)
        positions = positions[positions != PADDING]
        assert positions.tolist() == list(range(start, min(start + batch_size, num_samples)))
        seen += order.rows[positions].tolist()
    assert sorted(seen) == list(range(num_samples))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    labels = np.zeros(50, np.int64)
    orders = [epoch_order(labels, seed=seed, epoch=epoch).rows.tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert epoch_order(labels, seed=1, epoch=2).rows.tolist() == orders[5]


def test_an_epoch_is_a_full_shuffle() -> None:
    """Each row is as likely at each place: what a shuffle of blocks would not give."""
    firsts = [epoch_order(np.zeros(4, np.int64), seed=0, epoch=epoch).rows[0] for epoch in range(400)]
    assert (np.bincount(firsts, minlength=4) > 70).all()


def test_balanced_epochs_draw_every_label_equally_often_and_every_row_in_turn() -> None:
    labels = np.array([0] * 31 + [3] * 5 + [7] * 4)
    drawn = np.zeros(40, np.int64)
    for epoch in range(12):
        order = epoch_order(labels, seed=5, epoch=epoch, balanced=True)
        counts = np.bincount(labels[order.rows])[[0, 3, 7]]
        assert sorted(counts.tolist()) == [13, 13, 14]
        drawn += np.bincount(order.rows, minlength=40)
    for label in (0, 3, 7):
        own = drawn[labels == label]
        assert own.sum() == 160
        assert own.max() - own.min() <= 1


def test_repeats_of_a_video_in_a_balanced_epoch_are_counted() -> None:
    order = epoch_order(np.array([0] * 9 + [1]), seed=0, epoch=0, balanced=True)
    assert order.occurrences[order.rows == 9].tolist() == [0, 1, 2, 3, 4]
    assert not order.occurrences[order.rows < 9].any()


def test_a_clip_has_a_seed_of_its_own() -> None:
    seeds = {
        clip_seed(seed=seed, epoch=epoch, row=row, occurrence=occurrence)
        for seed in range(3)
        for epoch in range(5)
        for row in range(20)
        for occurrence in range(2)
    }
    assert len(seeds) == 600
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize(("seed", "expected"), [(0, 17499033758151374339), (1, 8264141814597994554)])
def test_seeds_do_not_change_between_versions(seed: int, expected: int) -> None:
    """A run that an older version began must go on with the same clips."""
    assert clip_seed(seed=seed, epoch=2, row=3) == expected
