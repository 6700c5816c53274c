"""The stages of a score run, without Ray. What they do with real videos is in test_job."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.runs import wait_until
from tests.support.videos import make_video
from vidray.errors import RunError, VideoError
from vidray.scoring import stages
from vidray.scoring.output import ROW
from vidray.scoring.plan_rows import PLAN_SCHEMA
from vidray.scoring.timing import BusyClock
from vidray.types import Limits, Status, ViewConfig

VIEW = ViewConfig(num_frames=2, size=8, num_clips=1)


def test_calls_side_by_side_are_busy_once():
    clock, both_inside = BusyClock(), threading.Barrier(2)
    took: list[float] = []

    def call() -> None:
        with clock:
            both_inside.wait()
            time.sleep(0.2)  # what is measured
        took.append(clock.take())

    started = time.perf_counter()
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.2 <= sum(took) <= time.perf_counter() - started


def test_time_in_which_nobody_is_inside_is_not_busy():
    clock = BusyClock()
    with clock:
        pass
    clock.take()
    time.sleep(0.2)  # what is not to be counted
    with clock:
        pass
    assert clock.take() < 0.1


def plan(num_rows: int) -> pa.Table:
    """Plan rows of objects that are not there."""
    rows = [{ROW: number, "uri": f"/none/{number}", "size_bytes": 1, "attempts": 1} for number in range(num_rows)]
    return pa.Table.from_pylist(rows, PLAN_SCHEMA)


def plan_of(*paths: Path) -> pa.Table:
    rows = [{ROW: number, "uri": str(path), "attempts": 1} for number, path in enumerate(paths)]
    return pa.Table.from_pylist(rows, PLAN_SCHEMA)


def test_a_block_that_waits_for_the_decoder_holds_half_a_window_of_objects(monkeypatch):
    asked: list[str] = []

    def fetch(ref, *, limits):
        asked.append(ref.uri)
        raise VideoError(Status.NOT_FOUND, "not there")

    monkeypatch.setattr(stages, "fetch", fetch)
    stage = stages.DecodeStage(view=ViewConfig(num_frames=4, size=32, num_clips=1), limits=Limits(), fetch_threads=8)
    with ThreadPoolExecutor(1) as caller:
        with stage._decoding:
            call = caller.submit(stage, plan(20))
            wait_until(lambda: len(asked) == 4, what="four objects")
            stage._fetchers.submit(int).result()  # what was asked for before has begun
            assert len(asked) == 4
        assert call.result(60)["status"].to_pylist() == ["not_found"] * 20
    assert len(asked) == 20
    stage._sandbox.close()


@pytest.mark.parametrize(("budget", "expected"), [(100, 3), (20, 1), (1000, 8)])
def test_objects_that_wait_for_a_decoder_take_a_bounded_memory_and_the_largest_waits_alone(
    monkeypatch, budget, expected
):
    """Objects of 15 bytes; half of the budget is for each of the two blocks that may be in the stage."""
    under_way, most, lock = set(), [0], threading.Lock()

    def fetch(ref, *, limits):
        with lock:
            under_way.add(ref.uri)
            most[0] = max(most[0], len(under_way))
        time.sleep(0.02)  # so that those that may be under way together are
        raise VideoError(Status.NOT_FOUND, "not there")

    stage = stages.DecodeStage(view=VIEW, limits=Limits(), fetch_threads=8, fetch_memory_bytes=budget)
    decode = stage._decode

    def decoded(data, seconds, time_range, out):
        with lock:
            under_way.discard(next(iter(sorted(under_way))))
        return decode(data, seconds, time_range, out)

    monkeypatch.setattr(stages, "fetch", fetch)
    monkeypatch.setattr(stage, "_decode", decoded)
    block = plan(20)
    block = block.set_column(block.schema.get_field_index("size_bytes"), "size_bytes", pa.array([15] * 20))
    assert stage(block)["status"].to_pylist() == ["not_found"] * 20
    # One more than waits: it is being decoded while its place is taken.
    assert expected <= most[0] <= expected + 1
    stage._sandbox.close()


def test_a_row_says_how_closed_its_decoder_was(tmp_path):
    (tmp_path / "good.mp4").write_bytes(make_video())
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows = [
        {ROW: number, "uri": f"{tmp_path}/{name}.mp4", "attempts": 1}
        for number, name in enumerate(["gone", "bad", "good"])
    ]
    stage = stages.DecodeStage(view=VIEW, limits=Limits())
    decoded = stage(pa.Table.from_pylist(rows, PLAN_SCHEMA)).to_pylist()
    stage._sandbox.close()
    assert [row["status"] for row in decoded] == ["not_found", "unsupported", "ok"]
    text = str(stage._sandbox.confinement)
    assert [row["sandbox"] for row in decoded] == [None, text, text]
    assert "closed by the kernel" in text


def test_a_machine_that_is_not_as_closed_as_required_ends_the_stage(tmp_path):
    (tmp_path / "good.mp4").write_bytes(make_video())
    limits, child = Limits(require_sandbox=True), "tests.support.unfiltered_poison_child"
    stage = stages.DecodeStage(view=VIEW, limits=limits, child_module=child)
    with pytest.raises(RunError, match=r"--require-sandbox: .* seccomp is not in force"):
        stage(plan_of(tmp_path / "good.mp4"))


def test_a_block_of_failures_does_not_take_the_time_of_the_one_beside_it():
    class Slow:
        def predict(self, views):
            return []

    stage = stages.PredictStage.__new__(stages.PredictStage)
    stage._busy, stage._predictor, stage._name, stage._view = BusyClock(), Slow(), "here", VIEW
    failed = pa.Table.from_pylist([{"status": "corrupt"}], stages.DECODED_SCHEMA)
    with stage._busy:
        time.sleep(0.1)  # what is measured
        stage(failed)
    assert stage._busy.take() >= 0.1


def make_block(is_ok: list[bool]) -> pa.Table:
    """Row i has views of i everywhere."""
    room = np.empty((len(is_ok), *VIEW.views_shape), np.uint8)
    for number, views in enumerate(room):
        views[:] = number
    return pa.table({"views": stages._views_column(room, is_ok)})


def test_views_are_those_of_the_rows_that_decoded_and_lie_in_the_block_itself():
    block = make_block([True, False, True, True, False, True])
    joined = pa.concat_tables([block.slice(1, 3), block.slice(4)])
    found = stages.views_of(joined, VIEW)
    assert [set(views.ravel().tolist()) for views in found] == [{2}, {3}, {5}]
    assert {views.shape for views in found} == {VIEW.views_shape}
    values = block["views"].chunk(0).buffers()[2]
    assert all(0 <= views.ctypes.data - values.address < values.size for views in found)


def test_a_block_of_failures_has_no_views():
    assert stages.views_of(make_block([False, False]), VIEW) == []
