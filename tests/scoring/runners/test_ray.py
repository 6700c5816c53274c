"""The Ray graph: two operators, one block in and one block out, and nothing that waits for ever."""

from __future__ import annotations

import dataclasses
import gc
import re
import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import ray

from tests.support.faulty_stages import Breaks, Counts, Dawdles, Inflates, Meets, Predicts, Same
from tests.support.runs import wait_until
from vidray.scoring.config import ScoreConfig
from vidray.scoring.runners import ray as ray_runner
from vidray.scoring.runners.base import Stages, StageSpec
from vidray.scoring.runners.ray import PlanSource
from vidray.scoring.runners.ray_layout import ActorPool, Layout
from vidray.types import ViewConfig


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


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python does not look for cycles by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("time", ["first", "second"])  # more than half of the times some actor was left
def test_a_stream_that_is_closed_early_ends_its_execution_and_its_actors(local_ray, layout, uncollected, time):
    rows = pa.table({"row": np.arange(200_000)})  # minutes of work, if it went on
    tables = stream(rows, Counts, Same, layout)
    next(tables)
    assert any(executors())
    tables.close()
    wait_until(lambda: not any(executors()), timeout=30, what="the end of the execution")
    wait_until(lambda: ray.available_resources().get("CPU") == 2, timeout=30, what="the end of its actors")


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


def test_a_run_for_which_there_is_no_room_says_so_and_goes_on_when_there_is(local_ray):
    """Somebody else has one of two CPUs; a decoder and a predictor need more."""

    @ray.remote(num_cpus=1)
    class Other:
        def is_there(self) -> bool:
            return True

    other, told = Other.remote(), []
    assert ray.get(other.is_there.remote())
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 1, timeout=30, what="the other actor")

    def say(text: str) -> None:
        told.append(text)
        ray.kill(other)

    config = ScoreConfig(source=("-",), model="-", output="-", device="cpu", decoders="1", predictors="1")
    view = ViewConfig(num_frames=2, size=8, num_clips=1)
    runner = ray_runner.RayRunner(config, view, lambda num_threads: stages_of(Counts, Predicts), say=say)
    rows = sorted(row for table in runner.run(pa.table({"row": np.arange(3)})) for row in table["row"].to_pylist())
    assert rows == [0, 1, 2]
    (text,) = told
    assert re.match(r"waiting for room on the Ray cluster: 1 of 2 CPUs are free where 1\.\d+ are needed", text)


def test_the_graph_of_a_streaming_run_has_one_pool(local_ray, layout, capfd):
    rows, one = pa.table({"row": np.arange(20)}), dataclasses.replace(layout, decode=None)
    ray_runner.make_graph(rows, stages_of(None, Counts), one).explain()
    text = capfd.readouterr().out
    assert text[text.rindex("Physical Plan") :].count("ActorPoolMapOperator") == 1
