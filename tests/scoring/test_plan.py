"""The order of a plan's rows: none is lost, and no long video is left for the end."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from vidray.scoring.output import ROW
from vidray.scoring.plan import with_long_ones_early


def rows(sizes: list[int | None]) -> pa.Table:
    uris = [f"/v/{number:04d}.mp4" for number in range(len(sizes))]
    return pa.table(
        {ROW: pa.array(range(len(sizes)), pa.int64()), "uri": uris, "size_bytes": pa.array(sizes, pa.int64())}
    )


def dealt(sizes: list[int | None]) -> list[int]:
    """The old row numbers in the new order."""
    table = with_long_ones_early(rows(sizes))
    assert table[ROW].to_pylist() == list(range(len(sizes)))
    return [int(uri[3:7]) for uri in table["uri"].to_pylist()]


@pytest.mark.parametrize("sizes", [[], [5], [3, 1, 2, 7], [None, None, 9], [0, 0, 100], [10] * 50])
def test_where_none_is_long_the_order_stays(sizes) -> None:
    assert dealt(sizes) == list(range(len(sizes)))


def test_one_long_video_comes_first_wherever_it_was_listed() -> None:
    for place in (0, 250, 500):
        sizes = [100] * 501
        sizes[place] = 100_000
        order = dealt(sizes)
        assert order[0] == place
        assert order[1:] == [number for number in range(501) if number != place]


def test_several_are_spread_over_the_first_half_the_longest_first() -> None:
    sizes = [100] * 96 + [1000, 4000, 2000, 3000]
    order = dealt(sizes)
    assert [number for number in order if number >= 96] == [97, 99, 98, 96]
    assert [order.index(number) for number in (97, 99, 98, 96)] == pytest.approx([0, 13, 26, 39], abs=1)
    assert [number for number in order if number < 96] == list(range(96))


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_there_once(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice([None, 0, 1, 10, 100, 10_000, 10**9]) for _ in range(draw.randint(1, 300))]
    assert sorted(dealt(sizes)) == list(range(len(sizes)))
