"""Actors are placed node by node, and nothing is asked for that would wait for ever."""

from __future__ import annotations

import math

import pytest

from vidray.cluster import Cluster, Node
from vidray.errors import UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.runners.ray_layout import READ_CPUS, make_layout
from vidray.types import ViewConfig

VIEW = ViewConfig(num_frames=16, size=224, num_clips=1)


def config(**more) -> ScoreConfig:
    return ScoreConfig(source=("s",), model="m", output="o", **more)


def nodes(*kinds: tuple[int, float, float]) -> tuple[Node, ...]:
    """(how many, CPUs, GPUs) of each kind."""
    return tuple(Node(num_cpus=cpus, num_gpus=gpus) for count, cpus, gpus in kinds for _ in range(count))


def fixed(num_cpus: float, num_gpus: float = 0) -> Cluster:
    """A cluster of one node."""
    return of((1, num_cpus, num_gpus))


def of(*kinds: tuple[int, float, float]) -> Cluster:
    """A cluster that does not grow."""
    return Cluster(nodes=nodes(*kinds), most=nodes(*kinds))


def empty(*kinds: tuple[int, float, float]) -> Cluster:
    """A cluster that an autoscaler has still to bring."""
    return Cluster(nodes=(), most=nodes(*kinds))


@pytest.mark.parametrize(
    ("cluster", "decoders", "predictors", "gpu"),
    [
        (fixed(1), (1, 1), (1, 1), False),
        (fixed(2), (1, 1), (1, 1), False),
        (fixed(16), (8, 8), (2, 2), False),
        (fixed(8, 1), (7, 7), (1, 1), True),
        (fixed(64, 4), (63, 63), (1, 4), True),
        (empty((4, 16, 1)), (1, 63), (1, 4), True),
    ],
)
def test_pools_fit_the_cluster_and_grow_with_it(cluster, decoders, predictors, gpu):
    layout = make_layout(config(), VIEW, cluster, num_rows=1000)
    assert (layout.decode.min_size, layout.decode.max_size) == decoders
    assert (layout.predict.min_size, layout.predict.max_size) == predictors
    assert layout.predict.num_gpus == (1 if gpu else 0)
    assert layout.predict.waiting_per_actor == (2 if gpu else 1)
    used = layout.decode.max_size * layout.decode.num_cpus + layout.predict.max_size * layout.predict.num_cpus
    assert used + READ_CPUS <= cluster.max_cpus


@pytest.mark.parametrize(
    ("cluster", "num_blocks"), [(fixed(2), 5), (fixed(16), 22), (fixed(8, 1), math.inf)], ids=["2", "16", "GPU"]
)
def test_decoders_that_share_the_cores_with_the_network_do_not_run_far_ahead_of_it(cluster, num_blocks):
    layout = make_layout(config(), VIEW, cluster, num_rows=100_000)
    assert layout.max_store_bytes == pytest.approx(num_blocks / 0.75 * layout.rows_per_block * VIEW.num_bytes)


def test_small_blocks_may_be_many():
    tiny = ViewConfig(num_frames=8, size=32, num_clips=1)
    assert make_layout(config(), tiny, fixed(2), num_rows=1000).max_store_bytes == 256 * 1024**2


@pytest.mark.parametrize(
    ("cluster", "flags"),
    [
        (fixed(2), {"device": "cuda"}),
        (fixed(2), {"decoders": "8"}),
        (fixed(4, 1), {"predictors": "2"}),
    ],
)
def test_a_pool_that_could_never_start_is_refused_at_once(cluster, flags):
    with pytest.raises(UsageError, match="would wait for ever"):
        make_layout(config(**flags), VIEW, cluster, num_rows=1000)


def test_half_precision_is_refused_without_a_gpu_before_anything_starts():
    with pytest.raises(UsageError, match="--precision fp16 needs a GPU"):
        make_layout(config(precision="fp16"), VIEW, fixed(2), num_rows=1)


@pytest.mark.parametrize(
    ("view", "num_rows", "rows"),
    [
        (VIEW, 100_000, 55),
        (ViewConfig(num_frames=8, size=112, num_clips=1), 100_000, 64),
        (ViewConfig(num_frames=16, size=224, num_clips=5, num_crops=3), 100_000, 3),
        (ViewConfig(num_frames=8, size=32, num_clips=1), 3, 1),
    ],
)
def test_a_block_is_about_128_megabytes_of_views_and_at_most_64_videos(view, num_rows, rows):
    assert make_layout(config(), view, fixed(2), num_rows=num_rows).rows_per_block == rows


STREAM = ViewConfig(num_frames=8, size=172, num_clips=1, span="stream")


@pytest.mark.parametrize(
    ("cluster", "flags", "actors", "videos", "gpu"),
    [
        (fixed(1), {}, (1, 1), 2, 0),
        (fixed(2), {}, (1, 1), 4, 0),
        (fixed(16), {}, (2, 2), 16, 0),
        (fixed(16), {"batch_size": 3}, (2, 2), 3, 0),
        (fixed(8, 1), {}, (1, 1), 16, 1),
        (empty((4, 16, 1)), {}, (1, 4), 16, 1),
    ],
)
def test_a_streaming_run_is_one_pool_whose_actors_take_as_many_videos_as_they_have_decoders(
    cluster, flags, actors, videos, gpu
):
    layout = make_layout(config(streaming=True, **flags), STREAM, cluster, num_rows=1000)
    assert layout.decode is None
    assert (layout.predict.min_size, layout.predict.max_size) == actors
    assert (layout.predict.calls_per_actor, layout.predict.num_gpus) == (videos, gpu)
    assert config(streaming=True, **flags).streams_per_worker(layout.threads_per_predictor) == videos
    assert layout.predict.min_size * layout.predict.num_cpus + READ_CPUS <= cluster.max_cpus


@pytest.mark.parametrize(("num_rows", "rows"), [(3, 1), (40, 2), (100_000, 4)])
def test_a_block_of_streamed_videos_is_small(num_rows, rows):
    layout = make_layout(config(streaming=True), STREAM, fixed(2), num_rows=num_rows)
    assert layout.rows_per_block == rows


def test_a_streaming_pool_that_could_never_start_is_refused_at_once():
    with pytest.raises(UsageError, match="would wait for ever"):
        make_layout(config(streaming=True, predictors="4"), STREAM, fixed(2), num_rows=10)


@pytest.mark.parametrize(
    ("cluster", "predictors", "threads", "decoders"),
    [
        (of((8, 4, 0)), (8, 8), 4, (16, 16)),
        (of((2, 16, 0)), (4, 4), 8, (16, 16)),
        (of((1, 0, 0), (3, 8, 0)), (3, 3), 8, (12, 12)),  # a head without CPUs
        (empty((10, 8, 0)), (1, 10), 8, (1, 40)),  # one predictor with one thread, by the sum of what is there
        (Cluster(nodes=nodes((1, 2, 0)), most=nodes((1, 2, 0), (4, 16, 0))), (1, 8), 8, (1, 33)),
    ],
)
def test_predictors_on_cpus_are_as_large_as_a_node_allows(cluster, predictors, threads, decoders):
    layout = make_layout(config(device="cpu"), VIEW, cluster, num_rows=1000)
    assert (layout.predict.min_size, layout.predict.max_size) == predictors
    assert layout.threads_per_predictor == threads
    assert (layout.decode.min_size, layout.decode.max_size) == decoders


@pytest.mark.parametrize(
    ("cluster", "flags"),
    [
        (of((8, 4, 0)), {"device": "cuda"}),
        (of((3, 0.4, 0)), {}),  # 1.2 CPUs, but no node has room for a decoder
        (of((2, 1, 1), (0, 8, 0)), {"predictors": "3"}),
    ],
)
def test_what_fits_on_no_node_is_refused_whatever_the_sum_is(cluster, flags):
    with pytest.raises(UsageError, match="would wait for ever"):
        make_layout(config(**flags), VIEW, cluster, num_rows=1000)


@pytest.mark.parametrize(
    ("demands", "kinds", "expected"),
    [
        ([(4, 0)], [(8, 2, 0)], False),
        ([(2, 0)] * 8, [(8, 2, 0)], True),
        ([(2, 0)] * 9, [(8, 2, 0)], False),
        ([(0, 1), (1, 0)], [(1, 0, 1), (1, 1, 0)], True),
        ([(1, 1)], [(1, 0, 1), (1, 1, 0)], False),
        ([(0.5, 0)] * 3, [(1, 1, 0)], False),
        ([], [], True),
    ],
)
def test_an_actor_is_on_one_node(demands, kinds, expected):
    assert of(*kinds).fits(demands) is expected
