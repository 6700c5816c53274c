"""Streaming scoring: what comes out is what the network says of the whole video, whatever else is scored beside it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support import runs
from tests.support.checkpoints import make_stream
from tests.support.closeness import FLOAT32_ROUNDING, assert_same, relative_error
from tests.support.faulty_stages import faulty_streams, poison_stages
from tests.support.poison_child import poisoned
from tests.support.videos import make_video, repeated
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.models.predict import aggregate, normalise
from vidray.scoring.batching import Request
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.output import PREDICTION_SCHEMA
from vidray.scoring.plan_rows import PLAN_SCHEMA
from vidray.scoring.stage_specs import default_stages
from vidray.scoring.stages import PREDICTED_SCHEMA
from vidray.scoring.stream_predictor import StreamPredictor
from vidray.scoring.stream_stage import ByteBudget, StreamStage
from vidray.types import Limits, ViewConfig
from vidray.video.views import stream_views

pytestmark = pytest.mark.usefixtures("one_thread")

LIMITS = Limits(decode_timeout_seconds=4, decode_memory_bytes=256 * 1024**2)
LENGTHS = (31, 7, 100, 1, 61, 48, 200, 90)
"""Frames of videos that are scored side by side."""


def noisy_video(seed: int, *, num_frames: int) -> bytes:
    """Frames that differ a lot, so that scores do."""
    generator = np.random.default_rng(seed)

    def draw(number: int, width: int, height: int) -> np.ndarray:
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return coarse.repeat(height // 4, axis=0).repeat(width // 4, axis=1)

    return make_video(num_frames=num_frames, width=48, height=48, draw=draw)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_stream(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for number, num_frames in enumerate(LENGTHS):
        (folder / f"{number:04d}.mp4").write_bytes(noisy_video(number, num_frames=num_frames))
    return sorted(folder.iterdir())


def view_of(model: Path, **asked) -> ViewConfig:
    config = ScoreConfig(source=("-",), model=str(model), output="-", streaming=True, **asked)
    return config.effective_view(read_checkpoint(str(model)).view)


def make_stage(model: Path, *, num_videos: int = 3, timeline: float | None = None, **more) -> StreamStage:
    more = {"limits": LIMITS, "child_module": "tests.support.poison_child", "device": "cpu", **more}
    view = view_of(model, timeline=timeline)
    return StreamStage(checkpoint=read_checkpoint(str(model)), view=view, num_videos=num_videos, **more)


def plan(paths: list[Path]) -> pa.Table:
    rows = [
        {"row": number, "uri": str(path), "size_bytes": path.stat().st_size, "attempts": 1}
        for number, path in enumerate(paths)
    ]
    return pa.Table.from_pylist(rows, PLAN_SCHEMA)


def frames_of(data: bytes, view: ViewConfig) -> torch.Tensor:
    """(1, T, H, W, C) uint8: the whole stream at once."""
    out = np.zeros(view.views_shape, np.uint8)
    chunks = [out[0, :n].copy() for n, _ in stream_views(data, view=view, limits=LIMITS, out=out)]
    return torch.from_numpy(np.concatenate(chunks))[None]


def one_shot(model: Path, frames_NTHWC: torch.Tensor) -> dict[str, float]:
    """Scores by label of the network that sees all frames in one forward."""
    checkpoint, view = read_checkpoint(str(model)), view_of(model)
    network = load_model(checkpoint)
    with torch.inference_mode():
        logits = network(normalise(frames_NTHWC, view=view)).logits
    scores = aggregate(logits, aggregation="prob", problem_type="single_label_classification")
    return dict(zip(checkpoint.labels, scores.tolist(), strict=True))


def scores_of(row: dict) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in row["top_k"]}


def difference(got: dict[str, float], expected: dict[str, float]) -> float:
    """Of scores by label, relative to the best of them; infinite where the labels are others."""
    if got.keys() != expected.keys():
        return math.inf
    return relative_error([got[label] for label in expected], list(expected.values()))


def close(got: dict[str, float], expected: dict[str, float]) -> bool:
    """Whether scores are the same, but for sums of float32 in another order."""
    return difference(got, expected) <= FLOAT32_ROUNDING


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_by_one(model, videos) -> list[dict]:
    """The rows of all videos, each alone."""
    stage = make_stage(model, num_videos=1, top_k=7)
    return [stage(plan([video])).to_pylist()[0] for video in videos]


def test_a_streamed_video_scores_as_the_network_says_of_all_its_frames_at_once(model, videos, one_by_one):
    for video, row in zip(videos, one_by_one, strict=True):
        assert row["status"] == "ok"
        assert close(scores_of(row), one_shot(model, frames_of(video.read_bytes(), view_of(model))))
        assert (row["label"], row["score"]) == (row["top_k"][0]["label"], row["top_k"][0]["score"])


def test_control_the_last_chunk_alone_scores_otherwise(model, videos, one_by_one):
    """Else the test above would pass with a network that forgets."""
    frames = frames_of(videos[6].read_bytes(), view_of(model))
    assert difference(scores_of(one_by_one[6]), one_shot(model, frames[:, -8:])) > 1000 * FLOAT32_ROUNDING


@pytest.mark.parametrize("num_threads", [1, 2])
def test_videos_of_any_length_side_by_side_score_as_each_alone(model, videos, one_by_one, num_threads):
    stage = make_stage(model, num_videos=5, top_k=7, num_threads=num_threads)
    table = stage(plan(videos))
    assert table.schema.equals(PREDICTED_SCHEMA)
    rows = table.to_pylist()
    assert all("closed by the kernel" in row["sandbox"] for row in rows)
    assert [row["uri"] for row in rows] == [str(video) for video in videos]
    assert all(close(scores_of(row), scores_of(alone)) for row, alone in zip(rows, one_by_one, strict=True))


def test_a_batch_of_states_scores_as_each_alone(model, videos):
    """Past the queue of the predictor, of which nobody knows what it takes together."""
    predictor = StreamPredictor(read_checkpoint(str(model)), view=view_of(model), device="cpu", max_videos=8)
    frames = [frames_of(video.read_bytes(), view_of(model))[0, :6].numpy() for video in videos[2:5:2]]
    alone = [predictor.step(chunk[2:], predictor.step(chunk[:2]).state) for chunk in frames]

    def together(chunks, states):
        batch = [Request(frames=chunk, state=state) for chunk, state in zip(chunks, states, strict=True)]
        predictor._answer(batch)
        return [request.answer.result(timeout=1) for request in batch]

    first = together([chunk[:2] for chunk in frames], [None, None])
    second = together([chunk[2:] for chunk in frames], [step.state for step in first])
    for step, expected in zip(second, alone, strict=True):
        assert_same(step.logits, expected.logits, relative=FLOAT32_ROUNDING)
        tensors = step.state.to_tensors().values()
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors), "it holds on to the whole batch"


def test_chunks_of_other_lengths_between_those_that_share_a_batch_are_answered_too(model):
    predictor = StreamPredictor(read_checkpoint(str(model)), view=view_of(model), device="cpu", max_videos=8)
    requests = [Request(frames=np.zeros((n, 32, 32, 3), np.uint8), state=None) for n in (2, 3, 2, 1, 3)]
    with predictor._has_news:
        predictor._waiting.extend(requests)
        predictor._has_news.notify()
    assert all(request.answer.result(timeout=60).logits.isfinite().all() for request in requests)


def test_a_timeline_has_the_best_label_at_each_time_and_at_the_end(model, videos):
    stage = make_stage(model, timeline=0.7)
    rows = stage(plan(videos)).to_pylist()
    view = view_of(model)
    for video, row, num_frames in zip(videos, rows, LENGTHS, strict=True):
        frames = frames_of(video.read_bytes(), view)
        duration = num_frames / 30
        times = [0.7 * n for n in range(1, 20) if 0.7 * n < duration - 1e-9]
        assert [entry["end_seconds"] for entry in row["timeline"]] == pytest.approx([*times, duration])
        for entry in row["timeline"]:
            num_before = sum(1 for k in range(frames.shape[1]) if k * 0.2 < entry["end_seconds"] - 1e-9)
            scores = one_shot(model, frames[:, :num_before])
            assert entry["score"] == pytest.approx(max(scores.values()), rel=FLOAT32_ROUNDING)
            assert scores[entry["label"]] == pytest.approx(max(scores.values()), rel=FLOAT32_ROUNDING)
        assert (row["timeline"][-1]["label"], row["timeline"][-1]["score"]) == (row["label"], row["score"])


def test_a_timeline_that_ends_with_the_video_has_one_entry_there(model, tmp_path):
    (tmp_path / "two.mp4").write_bytes(noisy_video(0, num_frames=60))
    (row,) = make_stage(model, timeline=1.0)(plan([tmp_path / "two.mp4"])).to_pylist()
    assert [entry["end_seconds"] for entry in row["timeline"]] == [1.0, 2.0]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_failures_in_the_middle_disturb_no_other_video(model, videos, one_by_one, tmp_path):
    faults = {"segfault": "decoder_crashed", "hang": "decode_timeout", "wrong_shape": "decoder_crashed"}
    mixed = list(videos)
    for number, fault in enumerate(faults):
        path = tmp_path / f"{fault}.mp4"
        path.write_bytes(poisoned(noisy_video(number, num_frames=120), fault, "1"))
        mixed.insert(3 * number, path)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    mixed = [tmp_path / "bad.mp4", *mixed, tmp_path / "gone.mp4"]
    (tmp_path / "gone.mp4").touch()
    rows = plan(mixed)
    (tmp_path / "gone.mp4").unlink()
    by_name = {Path(row["uri"]).stem: row for row in make_stage(model, top_k=7)(rows).to_pylist()}
    assert {name: by_name[name]["status"] for name in (*faults, "bad", "gone")} == {
        **faults, "bad": "unsupported", "gone": "not_found"
    }  # fmt: skip
    assert all(by_name[name]["label"] is None and by_name[name]["error"] for name in faults)
    for video, alone in zip(videos, one_by_one, strict=True):
        assert close(scores_of(by_name[video.stem]), scores_of(alone))


def test_a_video_that_the_model_cannot_take_is_a_model_error_and_the_others_are_scored(model, videos, one_by_one):
    stage = make_stage(model, top_k=7)
    forward = stage._predictor._model.forward_stream
    disliked = frames_of(videos[2].read_bytes(), view_of(model))[0, 0].permute(2, 0, 1)

    def picky(pixels, state):
        if any(torch.equal((video[0] * 255).round().to(torch.uint8), disliked) for video in pixels):
            raise RuntimeError("I do not like this one")
        return forward(pixels, state)

    stage._predictor._model.forward_stream = picky
    rows = stage(plan(videos)).to_pylist()
    assert rows[2]["status"] == "model_error"
    assert rows[2]["error"] == "RuntimeError: I do not like this one"
    for number, (row, alone) in enumerate(zip(rows, one_by_one, strict=True)):
        assert number == 2 or close(scores_of(row), scores_of(alone))


def test_scores_that_are_no_numbers_are_a_model_error(tmp_path, videos):
    stage = make_stage(make_stream(tmp_path / "model"))
    with torch.no_grad():
        stage._predictor._model.classifier.bias.fill_(float("nan"))
    (row,) = stage(plan(videos[:1])).to_pylist()
    assert (row["status"], row["error"]) == ("model_error", "the model's logits are not finite in fp32")


def test_memory_that_runs_out_makes_batches_smaller_and_loses_no_video(model, videos):
    predictor = StreamPredictor(read_checkpoint(str(model)), view=view_of(model), device="cpu", max_videos=8)
    forward = predictor._forward

    def small(batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("too much")
        return forward(batch)

    predictor._forward = small
    chunk = frames_of(videos[0].read_bytes(), view_of(model))[0, :1].numpy()
    expected = predictor.step(chunk).logits
    batch = [Request(frames=chunk, state=None) for _ in range(4)]
    predictor._answer(batch)
    for request in batch:
        assert_same(request.answer.result(timeout=1).logits, expected, relative=FLOAT32_ROUNDING)
    assert predictor._max_videos == 2


def test_a_model_that_cannot_stream_is_refused(tmp_path):
    from tests.support.checkpoints import make_family
    from vidray.errors import UsageError

    for name in ("videomae", "movinet"):
        checkpoint = read_checkpoint(str(make_family(tmp_path / name, name, labels=("a", "b"))))
        view = dataclasses.replace(checkpoint.view, span="stream", num_clips=1)
        with pytest.raises(UsageError, match=r"movinet with stream: true .* this one is " + name):
            StreamPredictor(checkpoint, view=view, device="cpu")


def test_a_budget_lets_in_what_fits_and_what_is_too_large_alone():
    budget, order = ByteBudget(10), []
    entered = threading.Event()

    def hold(name: str, num_bytes: int) -> None:
        with budget.held(num_bytes):
            order.append(name)
            entered.set()

    with budget.held(6):
        small = threading.Thread(target=hold, args=("small", 4))
        small.start()
        small.join(10)
        assert order == ["small"]
        entered.clear()
        large = threading.Thread(target=hold, args=("large", 50))
        large.start()
        assert not entered.wait(0.1)
    large.join(10)
    assert order == ["small", "large"]


def test_a_budget_serves_who_came_first_so_that_a_large_video_is_not_overtaken_for_ever():
    budget, order = ByteBudget(10), []
    threads = []

    def hold(name: str, num_bytes: int) -> None:
        with budget.held(num_bytes):
            order.append(name)

    with budget.held(1):
        for place, (name, num_bytes) in enumerate([("large", 50), ("small", 1)], start=1):
            threads.append(threading.Thread(target=hold, args=(name, num_bytes)))
            threads[-1].start()
            runs.wait_until(lambda place=place: len(budget._queue) == place, what="a place in the queue")
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]


# -- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """
import json, sys
from pathlib import Path
from tests.scoring.test_stream_stage import make_stage, plan

def peak(pid):
    return next(int(line.split()[1]) * 1024 for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))

model, short, long = map(Path, sys.argv[1:])
stage = make_stage(model, num_videos=1, timeline=60.0, child_module="vidray.sandbox.child")
for path in (short, long):
    (row,) = stage(plan([path])).to_pylist()
    number, sandbox = stage._sandboxes.get()
    stage._sandboxes.put((number, sandbox))
    print(json.dumps([row["status"], row["duration_seconds"], len(row["timeline"]), peak("self"), peak(sandbox.pid)]))
"""


def test_an_hour_of_video_takes_no_more_memory_than_a_minute(tmp_path):
    """108,000 frames, within the limits as they are by default; one a second is looked at, to be done in time."""
    make_stream(tmp_path / "model", stride=30)
    minute = make_video(num_frames=1800, width=48, height=48, gop_size=60, options={"qp": "40"})
    (tmp_path / "minute.mp4").write_bytes(minute)
    (tmp_path / "hour.mp4").write_bytes(repeated(minute, 60))
    arguments = [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in ("model", "minute.mp4", "hour.mp4"))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=runs.ROOT)
    short, long = (json.loads(line) for line in done.stdout.splitlines())
    assert short[:3] == ["ok", 60, 1]
    assert long[:3] == ["ok", 3600, 60]
    file_bytes = (tmp_path / "hour.mp4").stat().st_size
    assert long[3] - short[3] < file_bytes + 16 * 1024**2, "the predictor grew by more than the file that it fetched"
    assert long[4] - short[4] < 16 * 1024**2, "the decoder grew"


# -- whole jobs --------------------------------------------------------------------------------------------------------


def score(source: Path, model: Path, output: Path, *, make_stages=default_stages, **more) -> list[dict]:
    values = {"streaming": True, "max_failure_rate": 1.0, "device": "cpu", "runner": "local", **more}
    config = ScoreConfig(source=(str(source),), model=str(model), output=str(output), **values)
    return ScoreJob(config, make_stages=make_stages).run()


@runs.ON_RAY_LONG
def test_nights_of_streaming_beside_others(tmp_path, model, videos, runner):
    """Poisonous videos are rows; nothing new is nothing to do; another way to look at a video is other work."""
    output, source = tmp_path / "out", tmp_path / "videos"
    source.mkdir()
    for video in videos:
        (source / video.name).write_bytes(video.read_bytes())
    faults = {"a": "segfault", "b": "hang", "c": "memory"}
    for name, fault in faults.items():
        (source / f"{name}.mp4").write_bytes(poisoned(noisy_video(9, num_frames=90), fault, "1"))
    uris = sorted(str(path) for path in source.iterdir())
    poisoned_night = {"make_stages": poison_stages, "limits": LIMITS, "rows_per_part": 3}
    (summary,) = score(source, model, output, timeline=1.0, runner=runner, **poisoned_night)
    rows = runs.assert_each_once(output, uris)
    statuses = {Path(row["uri"]).stem: row["status"] for row in rows}
    assert [statuses.pop(name) for name in faults] == ["decoder_crashed", "decode_timeout", "out_of_memory"]
    assert set(statuses.values()) == {"ok"}
    table = pa.dataset.dataset(f"{output}/predictions", format="parquet").to_table()
    assert table.schema.remove_metadata().equals(PREDICTION_SCHEMA)
    for row in rows:
        assert (row["timeline"] is None) == (row["status"] != "ok")
    assert json.loads(rows[0]["view_config"]) | {"span": "stream", "timeline_seconds": 1.0} == json.loads(
        rows[0]["view_config"]
    )
    timing = summary["this_process"]
    assert all(timing["stage_seconds"][stage] > 0 for stage in ("fetch", "decode", "predict"))
    assert (timing["num_predictors"], timing["num_decoders"]) == (1, 4)
    assert all(0 < busy <= 1 for busy in timing["stage_busy"].values())

    assert score(source, model, output, timeline=1.0, max_attempts=1, runner=runner) == [], "nothing is new"
    for more in ({}, {"streaming": False}):
        (summary,) = score(source, model, output, runner=runner, **more)
        assert summary["num_already_done"] == 0
        assert summary["num_scored"] == len(uris), "without the poisoned child they are videos like others"
    assert len({row["result_key"] for row in runs.read_rows(output)}) == 3


@pytest.mark.long  # of segments, which go the same way, one is not
@pytest.mark.parametrize("name", ["local", "ray"])
def test_a_driver_killed_in_the_middle_streams_each_video_once(tmp_path, model, name):
    source, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(source, num_videos=40, num_frames=240)
    flags = ("--streaming", "--stride", "1", "--timeline", "1", "--rows-per-part", "4", "--runner", name)
    arguments = runs.command(source=source, model=model, output=output, flags=flags)
    process = runs.start(arguments)
    runs.wait_until(lambda: len(runs.parts(output)) >= 3 or process.poll() is not None, what="the point to kill at")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert runs.markers(output) == []
    before = {path: path.read_bytes() for path in runs.parts(output)}
    assert 3 <= len(before) < 10
    assert "resuming run" in runs.run(arguments)
    rows = runs.assert_each_once(output, uris)
    assert {row["status"] for row in rows} == {"ok"}
    scores = [row["score"] for row in rows]
    assert_same(scores, scores[:1] * len(scores), relative=FLOAT32_ROUNDING)  # all have the same pictures
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(runs.markers(output)) == 1


@runs.ON_RAY_LONG
def test_a_worker_killed_in_the_middle_loses_and_doubles_no_row(tmp_path, model, runner):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=24)
    stages = faulty_streams(state=tmp_path / "state")
    score(tmp_path / "videos", model, tmp_path / "out", make_stages=stages, runner=runner)
    rows = runs.assert_each_once(tmp_path / "out", uris)
    assert {row["status"] for row in rows} == {"ok"}
    assert len(list((tmp_path / "state").iterdir())) == 3, "the worker should have been killed three times"


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory) -> Path:
    from tests.support.checkpoints import make_videomae

    return make_videomae(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--streaming", "--views", "5x1"], "--views: got '5x1', allowed is 1x1 with --streaming"),
        (["--streaming", "--span", "full"], "--span: got 'full', allowed is none with --streaming"),
        (["--streaming", "--decoders", "4"], "--decoders: got '4', allowed is none with --streaming"),
        (["--streaming", "--compile"], "--compile: got True, allowed is not with --streaming"),
        (["--timeline", "2"], "--timeline: got 2.0, allowed is a timeline with --streaming"),
        (["--streaming", "--timeline", "0"], "--timeline: got 0.0, allowed is a number of seconds above 0"),
        (["--streaming", "--timeline", "nan"], "--timeline: got nan"),
        (["--streaming", "--timeline", "0.1"], "--timeline: timeline_seconds must be at least 0.2, one sampled frame"),
        (["--streaming", "--model", "PLAIN"], "movinet with stream: true"),
    ],
)
def test_a_contradiction_is_refused_before_any_work(tmp_path, model, plain_model, flags, message, capsys):
    from vidray.cli.main import main

    (tmp_path / "videos").mkdir()
    places = ["--source", str(tmp_path / "videos"), "--model", str(model), "--output", str(tmp_path / "out")]
    flags = [str(plain_model) if flag == "PLAIN" else flag for flag in flags]
    assert main(["score", *places, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_makes_the_view(model):
    view = view_of(model, timeline=2.0, stride=3, views="1x1")
    assert (view.span, view.timeline_seconds, view.stride) == ("stream", 2.0, 3)
    assert (view.num_frames, view.num_views, view.size) == (8, 1, 32)
    assert view_of(model).stride == 6, "the checkpoint's own rate"


def test_a_stream_is_no_checkpoints_own_way(tmp_path):
    from vidray.checkpoints.checkpoint import CheckpointMeta

    meta = read_checkpoint(str(make_stream(tmp_path / "model"))).meta
    values = json.loads(json.dumps(meta.to_json()))
    assert CheckpointMeta.from_json(values) == meta
    assert "timeline_seconds" not in values["view"]
    with pytest.raises(ValueError, match="span 'stream' is how a video is scored"):
        CheckpointMeta.from_json(values | {"view": values["view"] | {"span": "stream"}})


@pytest.fixture(autouse=True)
def _closed(monkeypatch) -> Iterator[None]:
    """No stage of a test outlives it: its sandboxes would hold memory and processes until the interpreter ends."""
    made: list[StreamStage] = []
    start = StreamStage.__init__

    def noted(self, **kwargs) -> None:
        start(self, **kwargs)
        made.append(self)

    monkeypatch.setattr(StreamStage, "__init__", noted)
    yield
    for stage in made:
        while not stage._sandboxes.empty():
            stage._sandboxes.get()[1].close()
