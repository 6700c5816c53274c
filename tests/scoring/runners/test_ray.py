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
from vidray.cluster import Cluster
from vidray.errors import UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.runners import ray as ray_runner
from vidray.scoring.runners.base import Stages, StageSpec
from vidray.scoring.runners.ray import ActorPool, Layout, PlanSource
from vidray.types import ViewConfig

VIEW = ViewConfig(num_frames=16, size=224, num_clips=1)


def config(**more) -> ScoreConfig:
    return ScoreConfig(source=("s",), model="m", output="o", **more)


def fixed(num_cpus: float, num_gpus: float = 0) -> Cluster:
    """A cluster that does not grow."""
    return Cluster(num_cpus=num_cpus, num_gpus=num_gpus, max_cpus=num_cpus, max_gpus=num_gpus)


def stages_of(decode: StageSpec | type | None, predict: StageSpec | type) -> Stages:
    """Stages without arguments may be named by their class alone."""

    def spec(stage: StageSpec | type) -> StageSpec:
        return stage if isinstance(stage, StageSpec) else StageSpec(cls=stage, kwargs={})

    return Stages(decode=spec(decode) if decode else None, predict=spec(predict))


def stream(rows: pa.Table, decode: StageSpec | type | None, predict: StageSpec | type, layout: Layout):
    return ray_runner.stream(rows, stages_of(decode, predict), layout, stall_timeout=60)


@pytest.fixture
def layout() -> Layout:
    pool = ActorPool(min_size=1, max_size=1, num_cpus=0.5)
    return Layout(
        decode=pool, predict=ActorPool(min_size=1, max_size=1, num_cpus=0.4), rows_per_block=8, threads_per_predictor=1
    )


def test_the_printed_plan_has_decode_and_predict_as_separate_operators(local_ray, layout, capfd):
    rows = pa.table({"row": np.arange(20)})
    ray_runner.make_graph(rows, stages_of(Counts, Same), layout).explain()
    text = capfd.readouterr().out
    physical = text[text.rindex("Physical Plan") :]
    assert "ActorPoolMapOperator[MapBatches(Counts)]" in physical
    assert "ActorPoolMapOperator[MapBatches(Same)]" in physical
    assert "Counts)->" not in physical, "fused: they would run one after the other in one process"


def test_blocks_stay_small_and_every_row_comes_once(local_ray, layout):
    rows = pa.table({"row": np.arange(1300)})
    tables = list(stream(rows, Counts, Same, layout))
    assert sorted(row for table in tables for row in table["row"].to_pylist()) == list(range(1300))
    assert max(n for table in tables for n in table["n"].to_pylist()) <= 8


def test_blocks_are_in_a_stage_side_by_side(local_ray, layout):
    pool = dataclasses.replace(layout.predict, calls_per_actor=2)
    meets = StageSpec(cls=Meets, kwargs={"num_calls": 2})
    rows, layout = pa.table({"row": np.arange(40)}), dataclasses.replace(layout, predict=pool)
    tables = list(stream(rows, Same, meets, layout))
    assert any(met for table in tables for met in table["met"].to_pylist())


def test_decoders_wait_when_the_views_that_nobody_has_predicted_fill_their_share_of_the_store(local_ray, layout):
    num_bytes, max_blocks = 16 * 1024**2, 16
    tables = stream(
        pa.table({"row": np.arange(60)}),
        StageSpec(cls=Inflates, kwargs={"num_bytes": num_bytes}),
        StageSpec(cls=Dawdles, kwargs={"seconds": 0.1}),
        dataclasses.replace(layout, rows_per_block=1, max_store_bytes=max_blocks * num_bytes),
    )
    times = pa.concat_tables(tables)
    made_at, began_at = times["made_at"].to_numpy(), times["began_at"].to_numpy()
    num_ahead = [int((made_at < now).sum() - (began_at < now).sum()) for now in began_at]
    assert len(num_ahead) == 60
    assert max(num_ahead) <= max_blocks


def test_a_stream_that_is_closed_early_ends_its_execution(local_ray, layout):
    rows = pa.table({"row": np.arange(200_000)})  # minutes of work, if it went on
    tables = stream(rows, Counts, Same, layout)
    next(tables)
    assert any(executors())
    tables.close()
    wait_until(lambda: not any(executors()), timeout=30, what="the end of the execution")


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
        list(stream(pa.table({"row": np.arange(3)}), Breaks, Same, layout))


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
    layout = ray_runner.make_layout(config(), VIEW, cluster, num_rows=1000)
    assert (layout.decode.min_size, layout.decode.max_size) == decoders
    assert (layout.predict.min_size, layout.predict.max_size) == predictors
    assert layout.predict.num_gpus == (1 if gpu else 0)
    assert layout.predict.waiting_per_actor == (2 if gpu else 1)
    used = layout.decode.max_size * layout.decode.num_cpus + layout.predict.max_size * layout.predict.num_cpus
    assert used + ray_runner.READ_CPUS <= cluster.max_cpus


@pytest.mark.parametrize(
    ("cluster", "num_blocks"), [(fixed(2), 5), (fixed(16), 22), (fixed(8, 1), math.inf)], ids=["2", "16", "GPU"]
)
def test_decoders_that_share_the_cores_with_the_network_do_not_run_far_ahead_of_it(cluster, num_blocks):
    layout = ray_runner.make_layout(config(), VIEW, cluster, num_rows=100_000)
    assert layout.max_store_bytes == pytest.approx(num_blocks / 0.75 * layout.rows_per_block * VIEW.num_bytes)


def test_small_blocks_may_be_many():
    tiny = ViewConfig(num_frames=8, size=32, num_clips=1)
    assert ray_runner.make_layout(config(), tiny, fixed(2), num_rows=1000).max_store_bytes == 256 * 1024**2


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
        ray_runner.make_layout(config(**flags), VIEW, cluster, num_rows=1000)


def test_half_precision_is_refused_without_a_gpu_before_anything_starts():
    with pytest.raises(UsageError, match="--precision fp16 needs a GPU"):
        ray_runner.make_layout(config(precision="fp16"), VIEW, fixed(2), num_rows=1)


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
    assert ray_runner.make_layout(config(), view, fixed(2), num_rows=num_rows).rows_per_block == rows


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
    layout = ray_runner.make_layout(config(streaming=True, **flags), STREAM, cluster, num_rows=1000)
    assert layout.decode is None
    assert (layout.predict.min_size, layout.predict.max_size) == actors
    assert (layout.predict.calls_per_actor, layout.predict.num_gpus) == (videos, gpu)
    assert config(streaming=True, **flags).streams_per_worker(layout.threads_per_predictor) == videos
    assert layout.predict.min_size * layout.predict.num_cpus + ray_runner.READ_CPUS <= cluster.max_cpus


@pytest.mark.parametrize(("num_rows", "rows"), [(3, 1), (40, 2), (100_000, 4)])
def test_a_block_of_streamed_videos_is_small(num_rows, rows):
    layout = ray_runner.make_layout(config(streaming=True), STREAM, fixed(2), num_rows=num_rows)
    assert layout.rows_per_block == rows


def test_a_streaming_pool_that_could_never_start_is_refused_at_once():
    with pytest.raises(UsageError, match="would wait for ever"):
        ray_runner.make_layout(config(streaming=True, predictors="4"), STREAM, fixed(2), num_rows=10)


def test_the_graph_of_a_streaming_run_has_one_pool(local_ray, layout, capfd):
    rows, one = pa.table({"row": np.arange(20)}), dataclasses.replace(layout, decode=None)
    ray_runner.make_graph(rows, stages_of(None, Counts), one).explain()
    text = capfd.readouterr().out
    assert text[text.rindex("Physical Plan") :].count("ActorPoolMapOperator") == 1
