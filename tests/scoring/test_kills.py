"""Nothing is lost or written twice, whoever is killed whenever: with real processes and signals, on both runners."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_stages import DropsAll, faulty_stages
from vidray.errors import RunError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.runners.base import Stages, StageSpec
from vidray.scoring.runners.local import LocalRunner
from vidray.scoring.stage_specs import default_stages
from vidray.storage.store import Store

SMALL_PARTS = (*runs.TINY_VIEWS, "--rows-per-part", "8", "--fetch-threads", "1")


def on(name: str) -> tuple[str, ...]:
    """The flags for one of the runners."""
    return (*SMALL_PARTS, "--runner", name)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


def config(source: Path, model: Path, output: Path, **more) -> ScoreConfig:
    values = {"views": "1x1", "span": "full", "rows_per_part": 8, "runner": "local", **more}
    return ScoreConfig(source=(str(source),), model=str(model), output=str(output), **values)


@pytest.mark.parametrize("name", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_a_driver_killed_again_and_again_ends_with_one_row_per_video(tmp_path, model, name):
    """SIGKILL at six points: while it starts, after the plan, after some parts, and just before the end."""
    uris = runs.make_bucket(tmp_path / "videos", num_videos=96)
    output = tmp_path / "out"
    arguments = runs.command(source=tmp_path / "videos", model=model, output=output, flags=on(name))
    finished: dict[Path, bytes] = {}
    seeded = random.Random(7)

    def plan_is_there() -> bool:
        return bool(list((output / "_runs").glob("*/plan.parquet")))

    def more_parts(num_parts: int):
        return lambda: len(runs.parts(output)) >= num_parts

    points = [plan_is_there, *(more_parts(n) for n in (1, 3, 5, 9))]
    killed = 0
    for reached in points:
        process = runs.start(arguments)
        runs.wait_until(lambda: reached() or process.poll() is not None, what="the point to kill at")  # noqa: B023
        time.sleep(seeded.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for path, data in finished.items():
            assert path.read_bytes() == data, "a finished part was touched"
        finished = {path: path.read_bytes() for path in runs.parts(output)}
    assert killed >= 5, "the run was over before it was killed often enough"
    assert runs.markers(output) == []
    text = runs.run(arguments)
    assert "resuming run" in text
    runs.assert_each_once(output, uris)
    assert all(path.read_bytes() == data for path, data in finished.items())
    assert len(runs.markers(output)) == 1


def test_a_driver_killed_before_and_after_a_put_neither_loses_nor_doubles_the_part(tmp_path, model, monkeypatch):
    """The moments that no signal from outside hits reliably: right before the write, and right after it."""
    uris = runs.make_bucket(tmp_path / "videos", num_videos=24)
    for moment in ("before", "after"):
        output = tmp_path / moment
        script = tmp_path / f"{moment}.py"
        script.write_text(KILL_AT_PUT.format(root=str(runs.ROOT), moment=moment))
        arguments = runs.command(source=tmp_path / "videos", model=model, output=output, flags=SMALL_PARTS)
        arguments[1] = str(script)
        runs.run(arguments, code=-signal.SIGKILL)
        assert len(runs.parts(output)) == (0 if moment == "before" else 1)
        arguments[1] = str(runs.ROOT / "jobs" / "score.py")
        runs.run(arguments)
        runs.assert_each_once(output, uris)


KILL_AT_PUT = """
import os, signal, sys
sys.path.insert(0, {root!r})
from vidray.cli import main as cli
from vidray.storage.store import Store

create = Store.create

def deadly(self, path, data):
    if "part-" in path and {moment!r} == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    create(self, path, data)
    if "part-" in path:
        os.kill(os.getpid(), signal.SIGKILL)

Store.create = deadly
sys.exit(cli.main(["score", *sys.argv[1:]]))
"""


def test_a_driver_killed_between_two_waves_of_rows_neither_loses_nor_doubles_any(tmp_path, model):
    """The last part of the first wave has rows of the second."""
    uris = runs.make_bucket(tmp_path / "videos", num_videos=24)
    output, script = tmp_path / "out", tmp_path / "waves.py"
    arguments = runs.command(source=tmp_path / "videos", model=model, output=output, flags=on("local"))
    arguments[1] = str(script)
    script.write_text(KILL_AT_WAVE.format(root=str(runs.ROOT), wave=2))
    for num_parts in (1, 2):  # of 24 rows 10 were scored; then 10 of the 16 that were left
        runs.run(arguments, code=-signal.SIGKILL)
        assert len(runs.parts(output)) == num_parts
    script.write_text(KILL_AT_WAVE.format(root=str(runs.ROOT), wave=0))
    assert "resuming run" in runs.run(arguments)
    runs.assert_each_once(output, uris)


KILL_AT_WAVE = """
import os, signal, sys
sys.path.insert(0, {root!r})
from vidray.cli import main as cli
from vidray.scoring.runners.local import LocalRunner

run, waves = LocalRunner.run, []

def deadly(self, rows, **more):
    waves.append(rows.num_rows)
    if len(waves) == {wave}:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, rows, **more)

LocalRunner.rows_at_once, LocalRunner.run = 10, deadly
sys.exit(cli.main(["score", *sys.argv[1:]]))
"""


def test_what_a_wave_has_lost_is_there_before_the_next_one_begins(tmp_path, model, monkeypatch):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=36)
    asked: list[tuple[list[int], bool]] = []
    run = LocalRunner.run

    def noted(self, rows, *, alone=False):
        asked.append((rows["row"].to_pylist(), alone))
        return run(self, rows, alone=alone)

    monkeypatch.setattr(LocalRunner, "rows_at_once", 10)
    monkeypatch.setattr(LocalRunner, "run", noted)
    stages = faulty_stages(victim="decode", state=tmp_path / "state")
    ScoreJob(config(tmp_path / "videos", model, tmp_path / "out"), make_stages=stages).run()
    runs.assert_each_once(tmp_path / "out", uris)
    assert [numbers for numbers, alone in asked if not alone] == [
        list(range(n, min(n + 10, 36))) for n in (0, 10, 20, 30)
    ]
    wave: list[int] = []
    for numbers, alone in asked:
        wave = wave if alone else numbers
        assert set(numbers) <= set(wave)
    assert any(alone for _, alone in asked)


@pytest.mark.parametrize(
    ("runner", "victim"),
    [
        ("local", "decode"),
        ("local", "predict"),
        ("local", "child"),
        ("ray", "predict"),
        pytest.param("local", "device", marks=pytest.mark.long),
        *(pytest.param("ray", victim, marks=pytest.mark.long) for victim in ("decode", "child", "device")),
    ],
    indirect=["runner"],
)
def test_a_worker_killed_in_the_middle_of_a_block_loses_and_doubles_no_row(tmp_path, model, runner, victim):
    """The replay of the block has rows of other sizes and in another order, as after a timeout."""
    uris = runs.make_bucket(tmp_path / "videos", num_videos=64)
    stages = faulty_stages(victim=victim, state=tmp_path / "state")
    ScoreJob(config(tmp_path / "videos", model, tmp_path / "out", runner=runner), make_stages=stages).run()
    rows = runs.assert_each_once(tmp_path / "out", uris)
    assert len(list((tmp_path / "state").iterdir())) == 3, "the victim should have been killed three times"
    if victim != "child":
        assert {row["status"] for row in rows} == {"ok"}


def test_two_drivers_at_once_on_the_same_and_on_different_run_ids_score_each_video_once(tmp_path, model):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=48)
    for number, ids in enumerate((("same", "same"), ("one", "other"))):
        output = tmp_path / f"out{number}"
        base = runs.command(source=tmp_path / "videos", model=model, output=output, flags=SMALL_PARTS)
        both = [runs.start([*base, "--run-id", run_id]) for run_id in ids]
        texts = [process.communicate(timeout=300)[0] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 0], [0, 5]), texts
        if codes == [0, 5]:
            assert any("another run" in text for text in texts), texts
        runs.assert_each_once(output, uris)


def test_an_object_overwritten_between_plan_and_fetch_is_a_changed_row_and_scored_the_next_night(tmp_path, model):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=6)
    victim = Path(uris[2])
    job = ScoreJob(config(tmp_path / "videos", model, tmp_path / "out", max_failure_rate=0.5))
    make_stages = job._make_stages

    def overwrite_then_make(*args):
        victim.write_bytes(victim.read_bytes() + b"\0")
        return make_stages(*args)

    job._make_stages = overwrite_then_make
    job.run()
    rows = runs.assert_each_once(tmp_path / "out", uris)
    assert [row["status"] for row in rows] == ["ok", "ok", "changed", "ok", "ok", "ok"]
    ScoreJob(config(tmp_path / "videos", model, tmp_path / "out")).run()
    again = [row for row in runs.read_rows(tmp_path / "out") if row["uri"] == str(victim)]
    assert sorted(row["status"] for row in again) == ["changed", "ok"]
    assert len(runs.read_rows(tmp_path / "out")) == 7


@pytest.mark.parametrize(
    ("name", "signum", "code"),
    [
        ("local", signal.SIGINT, 130),
        pytest.param("local", signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param("ray", signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param("ray", signal.SIGTERM, 143, marks=pytest.mark.long),
    ],
)
def test_an_interrupted_run_leaves_nothing_broken_and_the_next_one_resumes(tmp_path, model, signum, code, name):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=300)
    output = tmp_path / "out"
    arguments = runs.command(source=tmp_path / "videos", model=model, output=output, flags=on(name))
    process = runs.start(arguments)
    runs.wait_until(lambda: len(runs.parts(output)) >= 2 or process.poll() is not None, what="two parts")
    process.send_signal(signum)
    text = runs.finish(process, code=code)
    assert "Traceback" not in text
    assert "interrupted" in text
    assert "resuming run" in runs.run(arguments)
    runs.assert_each_once(output, uris)


@runs.ON_RAY_LONG
def test_a_row_that_is_lost_again_and_again_becomes_a_failed_row_that_says_why(tmp_path, model, runner):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=16)
    stages = faulty_stages(victim="drops a row", state=tmp_path / "state")
    asked = config(tmp_path / "videos", model, tmp_path / "out", runner=runner, max_failure_rate=0.5)
    (summary,) = ScoreJob(asked, make_stages=stages).run()
    rows = runs.assert_each_once(tmp_path / "out", uris)
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["model_error"] + ["ok"] * 10
    assert rows[5]["error"].startswith("lost 3 times: ")
    assert summary["failed_by_status"] == {"model_error": 1}


@runs.ON_RAY_LONG
def test_a_row_that_costs_the_device_again_and_again_is_the_only_one_that_fails(tmp_path, model, runner):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=16)
    stages = faulty_stages(victim="loses its device", state=tmp_path / "state")
    asked = config(tmp_path / "videos", model, tmp_path / "out", runner=runner, max_failure_rate=0.5)
    ScoreJob(asked, make_stages=stages).run()
    rows = runs.assert_each_once(tmp_path / "out", uris)
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["model_error"] + ["ok"] * 10
    assert "device-side assert" in rows[5]["error"]


def test_an_engine_that_gives_nothing_back_ends_the_run_instead_of_failing_every_video(tmp_path, model, local_ray):
    runs.make_bucket(tmp_path / "videos", num_videos=24)

    def make(*args):
        stages = default_stages(*args)
        return Stages(decode=stages.decode, predict=StageSpec(cls=DropsAll, kwargs={}))

    with pytest.raises(RunError, match="24 of 24 rows were asked for one by one"):
        ScoreJob(config(tmp_path / "videos", model, tmp_path / "out", runner="ray"), make_stages=make).run()
    assert runs.parts(tmp_path / "out") == []
    assert runs.markers(tmp_path / "out") == []


def test_a_part_lost_afterwards_is_found_out_before_success_is_claimed(tmp_path, model):
    runs.make_bucket(tmp_path / "videos", num_videos=16)
    output = tmp_path / "out"
    ScoreJob(config(tmp_path / "videos", model, output)).run()
    marker = runs.markers(output)[0]
    keys = marker.with_name("keys.parquet")
    for path in (marker, keys, marker.with_name("summary.json"), runs.parts(output)[0]):
        path.unlink()
    ScoreJob(config(tmp_path / "videos", model, output)).run()
    assert len(runs.read_rows(output)) == 16
    assert len(Store(str(output)).list("predictions")) == 2
    shutil.rmtree(output)
