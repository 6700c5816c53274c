"""The Ray graph: two operators, one block in and one block out, and nothing that waits for ever."""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np
import pyarrow as pa
import pytest

from tests.support.faulty_stages import Breaks, Counts, Dawdles, Inflates, Meets, Same
from tests.support.runs import wait_until
from vidray.errors import UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.runners import ray as pipeline
from vidray.scoring.runners.ray import Cluster, Layout, PlanSource, Pool, Stage
from vidray.types import ViewConfig

VIEW = ViewConfig(num_frames=16, size=224, num_clips=1)


def config(**more) -> ScoreConfig:
    return ScoreConfig(source=("s",), model="m", output="o", **more)


def fixed(num_cpus: float, num_gpus: float = 0) -> Cluster:
    """A cluster that does not grow."""
    return Cluster(num_cpus=num_cpus, num_gpus=num_gpus, max_cpus=num_cpus, max_gpus=num_gpus)


@pytest.fixture
def layout() -> Layout:
    pool = Pool(min_size=1, max_size=1, num_cpus=0.5)
    return Layout(
        decode=pool, predict=Pool(min_size=1, max_size=1, num_cpus=0.4), rows_per_block=8, threads_per_predictor=1
    )


def test_the_printed_plan_has_decode_and_predict_as_separate_operators(local_ray, layout, capfd):
    rows = pa.table({"row": np.arange(20)})
    graph = pipeline.make_graph(
        rows, decode=Stage(cls=Counts, kwargs={}), predict=Stage(cls=Same, kwargs={}), layout=layout
    )
    graph.explain()
    text = capfd.readouterr().out
    physical = text[text.rindex("Physical Plan") :]
    assert "ActorPoolMapOperator[MapBatches(Counts)]" in physical
    assert "ActorPoolMapOperator[MapBatches(Same)]" in physical
    assert "Counts)->" not in physical, "fused: they would run one after the other in one process"


def test_blocks_stay_small_and_every_row_comes_once(local_ray, layout):
    rows = pa.table({"row": np.arange(1300)})
    tables = list(
        pipeline.stream(
            rows,
            decode=Stage(cls=Counts, kwargs={}),
            predict=Stage(cls=Same, kwargs={}),
            layout=layout,
            stall_timeout=60,
        )
    )
    assert sorted(row for table in tables for row in table["row"].to_pylist()) == list(range(1300))
    assert max(n for table in tables for n in table["n"].to_pylist()) <= 8


def test_blocks_are_in_a_stage_side_by_side(local_ray, layout):
    pool = dataclasses.replace(layout.predict, calls_per_actor=2)
    tables = list(
        pipeline.stream(
            pa.table({"row": np.arange(40)}),
            decode=Stage(cls=Same, kwargs={}),
            predict=Stage(cls=Meets, kwargs={"num_calls": 2}),
            layout=dataclasses.replace(layout, predict=pool),
            stall_timeout=60,
        )
    )
    assert any(met for table in tables for met in table["met"].to_pylist())


def test_decoders_wait_when_the_views_that_nobody_has_predicted_fill_their_share_of_the_store(local_ray, layout):
    num_bytes, max_blocks = 16 * 1024**2, 16
    tables = pipeline.stream(
        pa.table({"row": np.arange(60)}),
        decode=Stage(cls=Inflates, kwargs={"num_bytes": num_bytes}),
        predict=Stage(cls=Dawdles, kwargs={"seconds": 0.1}),
        layout=dataclasses.replace(layout, rows_per_block=1, max_store_bytes=max_blocks * num_bytes),
        stall_timeout=60,
    )
    times = pa.concat_tables(tables)
    made_at, began_at = times["made_at"].to_numpy(), times["began_at"].to_numpy()
    num_ahead = [int((made_at < now).sum() - (began_at < now).sum()) for now in began_at]
    assert len(num_ahead) == 60
    assert max(num_ahead) <= max_blocks


class Clock:
    """Time that passes when it is told to, or slept."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def slept(clock: Clock, *, gaps: list[float], num_rows: int) -> list[float]:
    """What a pace sleeps between blocks of 10 rows that come after ``gaps`` seconds, however long it slept."""
    pace, comes = pipeline._Pace(num_rows=num_rows), clock.now
    for gap in gaps:
        comes += gap
        clock.now = max(clock.now, comes)
        pace.take(10)
        pace.rest()
    return clock.slept


@pytest.mark.parametrize(
    ("gaps", "num_rows", "expected"),
    [
        ([1.0, 1.0, 1.0], 100, [0.85, 0.85, 0.85]),
        ([30.0, 30.0], 100, [2.0, 2.0]),  # a live line may be so late
        ([1.0, 0.1, 0.1, 5.0], 100, [0.85, 2.0]),  # faster than expected: those that wait are taken at once
        ([1.0, 1.0, 1.0], 20, [0.85]),  # the end is near
        ([0.01] * 5, 100, []),
    ],
)
def test_between_blocks_the_driver_sleeps_but_never_long_nor_near_the_end(gaps, num_rows, expected, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pipeline, "time", clock)
    assert slept(clock, gaps=gaps, num_rows=num_rows) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gap", "num_rows", "expected"), [(0.4, 100, [0.1]), (30.0, 100, [0.5]), (0.4, 10, []), (0.0, 100, [0.0])]
)
def test_planning_rests_for_a_part_of_what_a_block_takes_but_not_near_the_end(gap, num_rows, expected, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pipeline, "time", clock)
    pace = pipeline._Pace(num_rows=num_rows)
    clock.now += gap
    pace.take(10)
    pace.rest_from_planning()
    assert clock.slept == pytest.approx(expected)


def test_ray_data_rests_after_each_step_of_its_planning(local_ray, layout, monkeypatch):
    rests: list[str] = []
    monkeypatch.setattr(
        pipeline._Pace, "rest_from_planning", lambda pace: rests.append(threading.current_thread().name)
    )
    stages = {"decode": Stage(cls=Counts, kwargs={}), "predict": Stage(cls=Same, kwargs={})}
    list(pipeline.stream(pa.table({"row": np.arange(40)}), **stages, layout=layout, stall_timeout=60))
    assert rests
    assert all(name.startswith("StreamingExecutor") for name in rests), "it is not the driver's loop that may wait"


def test_actors_do_not_import_what_the_driver_alone_needs(local_ray, layout):
    class Imported:  # by value: as a part of this file it would bring its imports
        def __call__(self, block):
            import sys

            found = [name for name in ("vidray.scoring.runners.ray", "tyro") if name in sys.modules]
            return pa.table({"found": [found] * block.num_rows})

    table = pa.concat_tables(
        pipeline.stream(
            pa.table({"row": np.arange(8)}),
            decode=None,
            predict=Stage(cls=Imported, kwargs={}),
            layout=dataclasses.replace(layout, decode=None),
            stall_timeout=60,
        )
    )
    assert table["found"].to_pylist() == [[]] * 8


def test_ctrl_c_while_the_driver_sleeps_ends_the_execution(local_ray, layout, monkeypatch):
    def interrupted(pace):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline._Pace, "rest", interrupted)
    stages = {"decode": Stage(cls=Counts, kwargs={}), "predict": Stage(cls=Same, kwargs={})}
    rows = pa.table({"row": np.arange(200_000)})  # minutes of work, if it went on
    tables = pipeline.stream(rows, **stages, layout=layout, stall_timeout=60)
    with pytest.raises(KeyboardInterrupt) as kept:
        list(tables)
    # With the traceback still there, which holds the frames: Ray aborts the process if it is shut down meanwhile.
    wait_until(lambda: not any(executors()), timeout=30, what="the end of the execution")
    assert kept.traceback


def executors() -> list[str]:
    """Threads of executions under way."""
    return [thread.name for thread in threading.enumerate() if "StreamingExecutor" in thread.name]


def test_a_read_task_carries_its_own_rows_only():
    from ray import cloudpickle

    rows = pa.table({"row": np.arange(100_000), "uri": [f"{i:0100d}" for i in range(100_000)]})
    tasks = PlanSource(rows, rows_per_block=8).get_read_tasks(1)
    assert len(tasks) > 100
    assert len(cloudpickle.dumps(tasks[0])) < 3 * rows.nbytes / len(tasks)


def test_a_failure_in_a_stage_ends_the_run_with_its_cause(local_ray, layout):
    from vidray.errors import RunError

    with pytest.raises(RunError, match="no such thing"):
        list(
            pipeline.stream(
                pa.table({"row": np.arange(3)}),
                decode=Stage(cls=Breaks, kwargs={}),
                predict=Stage(cls=Same, kwargs={}),
                layout=layout,
                stall_timeout=60,
            )
        )


@pytest.mark.parametrize(
    ("cluster", "decoders", "predictors", "gpu"),
    [
        (fixed(1), (1, 1), (1, 1), False),
        (fixed(2), (1, 1), (1, 1), False),
        (fixed(16), (8, 8), (2, 2), False),
        (fixed(8, 1), (7, 7), (1, 1), True),
        (fixed(64, 4), (63, 63), (1, 4), True),
        (Cluster(num_cpus=0, num_gpus=0, max_cpus=64, max_gpus=4), (1, 63), (1, 4), True),
    ],
)
def test_pools_fit_the_cluster_and_grow_with_it(cluster, decoders, predictors, gpu):
    layout = pipeline.make_layout(config(), VIEW, cluster, num_rows=1000)
    assert (layout.decode.min_size, layout.decode.max_size) == decoders
    assert (layout.predict.min_size, layout.predict.max_size) == predictors
    assert layout.predict.num_gpus == (1 if gpu else 0)
    assert layout.predict.waiting_per_actor == (2 if gpu else 1)
    used = layout.decode.max_size * layout.decode.num_cpus + layout.predict.max_size * layout.predict.num_cpus
    assert used + pipeline.READ_CPUS <= cluster.max_cpus


@pytest.mark.parametrize(
    ("cluster", "num_blocks"), [(fixed(2), 5), (fixed(16), 22), (fixed(8, 1), math.inf)], ids=["2", "16", "GPU"]
)
def test_decoders_that_share_the_cores_with_the_network_do_not_run_far_ahead_of_it(cluster, num_blocks):
    layout = pipeline.make_layout(config(), VIEW, cluster, num_rows=100_000)
    assert layout.max_store_bytes == pytest.approx(num_blocks / 0.75 * layout.rows_per_block * VIEW.num_bytes)


def test_small_blocks_may_be_many():
    tiny = ViewConfig(num_frames=8, size=32, num_clips=1)
    assert pipeline.make_layout(config(), tiny, fixed(2), num_rows=1000).max_store_bytes == 256 * 1024**2


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
        pipeline.make_layout(config(**flags), VIEW, cluster, num_rows=1000)


def test_half_precision_is_refused_without_a_gpu_before_anything_starts():
    with pytest.raises(UsageError, match="--precision fp16 needs a GPU"):
        pipeline.make_layout(config(precision="fp16"), VIEW, fixed(2), num_rows=1)


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
    assert pipeline.make_layout(config(), view, fixed(2), num_rows=num_rows).rows_per_block == rows


STREAM = ViewConfig(num_frames=8, size=172, num_clips=1, span="stream")


@pytest.mark.parametrize(
    ("cluster", "flags", "actors", "videos", "gpu"),
    [
        (fixed(1), {}, (1, 1), 2, 0),
        (fixed(2), {}, (1, 1), 4, 0),
        (fixed(16), {}, (2, 2), 16, 0),
        (fixed(16), {"batch_size": 3}, (2, 2), 3, 0),
        (fixed(8, 1), {}, (1, 1), 16, 1),
        (Cluster(num_cpus=0, num_gpus=0, max_cpus=64, max_gpus=4), {}, (1, 4), 16, 1),
    ],
)
def test_a_streaming_run_is_one_pool_whose_actors_take_as_many_videos_as_they_have_decoders(
    cluster, flags, actors, videos, gpu
):
    layout = pipeline.make_layout(config(streaming=True, **flags), STREAM, cluster, num_rows=1000)
    assert layout.decode is None
    assert (layout.predict.min_size, layout.predict.max_size) == actors
    assert (layout.predict.calls_per_actor, layout.predict.num_gpus) == (videos, gpu)
    assert config(streaming=True, **flags).streams_per_actor(layout.threads_per_predictor) == videos
    assert layout.predict.min_size * layout.predict.num_cpus + pipeline.READ_CPUS <= cluster.max_cpus


@pytest.mark.parametrize(("num_rows", "rows"), [(3, 1), (40, 2), (100_000, 4)])
def test_a_block_of_streamed_videos_is_small(num_rows, rows):
    layout = pipeline.make_layout(config(streaming=True), STREAM, fixed(2), num_rows=num_rows)
    assert layout.rows_per_block == rows


def test_a_streaming_pool_that_could_never_start_is_refused_at_once():
    with pytest.raises(UsageError, match="would wait for ever"):
        pipeline.make_layout(config(streaming=True, predictors="4"), STREAM, fixed(2), num_rows=10)


def test_the_graph_of_a_streaming_run_has_one_pool(local_ray, layout, capfd):
    rows, one = pa.table({"row": np.arange(20)}), dataclasses.replace(layout, decode=None)
    pipeline.make_graph(rows, decode=None, predict=Stage(cls=Counts, kwargs={}), layout=one).explain()
    text = capfd.readouterr().out
    assert text[text.rindex("Physical Plan") :].count("ActorPoolMapOperator") == 1
