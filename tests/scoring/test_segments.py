"""`--segments`: each window is scored, whatever else is scored beside it, and the row's label is that of them all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import vidray
from tests.scoring.test_stream_stage import LIMITS, close, noisy_video, plan, scores_of
from tests.support import runs
from tests.support.checkpoints import TINY, make_family, make_stream, make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_same
from tests.support.faulty_stages import faulty_streams
from tests.support.poison_child import poisoned
from tests.support.videos import make_video, repeated
from vidray.checkpoints.checkpoint import read_checkpoint
from vidray.cli.main import main as cli
from vidray.errors import UsageError
from vidray.models.predict import aggregate
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.predictor import Predictor
from vidray.scoring.stage_specs import default_stages
from vidray.scoring.stages import PREDICTED_SCHEMA
from vidray.scoring.stream_stage import StreamStage
from vidray.types import TimeRange, ViewConfig
from vidray.video.views import decode_views

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (31, 7, 100, 1, 61, 48)
SECONDS, STRIDE = 0.8, 0.5
TIMES = {
    31: [(0, 0.8), (0.2333, 1.0333)],
    7: [(0, 0.2333)],
    100: [(0, 0.8), (0.5, 1.3), (1, 1.8), (1.5, 2.3), (2, 2.8), (2.5, 3.3), (2.5333, 3.3333)],
    1: [(0, 0.0333)],
    61: [(0, 0.8), (0.5, 1.3), (1, 1.8), (1.2333, 2.0333)],
    48: [(0, 0.8), (0.5, 1.3), (0.8, 1.6)],
}
"""By the number of frames, at 30 a second: worked out by hand."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"), initializer_range=0.05)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for number, num_frames in enumerate(LENGTHS):
        (folder / f"{number:04d}.mp4").write_bytes(noisy_video(number, num_frames=num_frames))
    return sorted(folder.iterdir())


def view_of(model: Path, **asked) -> ViewConfig:
    asked = {"segments": SECONDS, "segment_stride": STRIDE, **asked}
    config = ScoreConfig(source=("-",), model=str(model), output="-", **asked)
    return config.effective_view(read_checkpoint(str(model)).view)


def make_stage(model: Path, *, num_videos: int = 3, asked: dict | None = None, **more) -> StreamStage:
    more = {"limits": LIMITS, "child_module": "tests.support.poison_child", "device": "cpu", "top_k": 7, **more}
    view = view_of(model, **(asked or {}))
    return StreamStage(checkpoint=read_checkpoint(str(model)), view=view, num_videos=num_videos, **more)


def logits_alone(model: Path, data: bytes, times: list[tuple[float, float]]) -> torch.Tensor:
    """(windows, num_labels): of each window as a video of its own, by the predictor of ordinary runs."""
    checkpoint = read_checkpoint(str(model))
    view = dataclasses.replace(checkpoint.view, span="full", num_clips=1, num_crops=1)
    exact = [[Fraction(seconds).limit_denominator(10**6) for seconds in window] for window in times]
    ranges = [TimeRange(start_seconds=start, end_seconds=end) for start, end in exact]
    views = [decode_views(data, view=view, limits=LIMITS, time_range=at)[0] for at in ranges]
    scores = Predictor(checkpoint, view=view, device="cpu").predict(views)
    return torch.cat([torch.from_numpy(score.logits) for score in scores])


def by_label(model: Path, logits_VC: torch.Tensor) -> dict[str, float]:
    scores = aggregate(logits_VC, aggregation="prob", problem_type="single_label_classification")
    return dict(zip(read_checkpoint(str(model)).labels, scores.tolist(), strict=True))


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 2])
def test_each_window_scores_as_a_video_of_its_own_and_the_row_as_all_of_them(model, videos, num_threads) -> None:
    table = make_stage(model, num_threads=num_threads)(plan(videos))
    assert table.schema.equals(PREDICTED_SCHEMA)
    for video, row, num_frames in zip(videos, table.to_pylist(), LENGTHS, strict=True):
        times = [(segment["start_seconds"], segment["end_seconds"]) for segment in row["segments"]]
        assert np.array(times) == pytest.approx(np.array(TIMES[num_frames]), abs=1e-4)
        logits = logits_alone(model, video.read_bytes(), times)
        for segment, alone in zip(row["segments"], logits, strict=True):
            assert close(scores_of(segment), by_label(model, alone[None]))
            assert (segment["label"], segment["score"]) == tuple(segment["top_k"][0].values())
        assert close(scores_of(row), by_label(model, logits))
        assert (row["status"], row["num_views"], row["timeline"]) == ("ok", len(times), None)
        assert row["num_frames_decoded"] == row["num_frames_expected"] == num_frames


@pytest.mark.parametrize("family", [*TINY, "stream"])
def test_every_family_scores_windows(family: str, tmp_path, videos) -> None:
    """A network that keeps a state forgets it from one window to the next."""
    labels = ("a", "b", "c")
    make = make_stream if family == "stream" else lambda folder: make_family(folder, family, labels=labels)
    model = make(tmp_path / "model")
    (row,) = make_stage(model, asked={"span": "full"})(plan(videos[4:5])).to_pylist()
    times = [(segment["start_seconds"], segment["end_seconds"]) for segment in row["segments"]]
    logits = logits_alone(model, videos[4].read_bytes(), times)
    for segment, alone in zip(row["segments"], logits, strict=True):
        assert close(scores_of(segment), by_label(model, alone[None]))


def test_failures_in_the_middle_disturb_no_other_video(model, videos, tmp_path) -> None:
    expected = [scores_of(row) for row in make_stage(model)(plan(videos)).to_pylist()]
    mixed = list(videos)
    faults = {"segfault": "decoder_crashed", "hang": "decode_timeout", "wrong_shape": "decoder_crashed"}
    for number, fault in enumerate(faults):
        path = tmp_path / f"{fault}.mp4"
        path.write_bytes(poisoned(noisy_video(number, num_frames=120), fault, "1"))
        mixed.insert(2 * number, path)
    rows = {Path(row["uri"]).stem: row for row in make_stage(model)(plan(mixed)).to_pylist()}
    assert {name: rows[name]["status"] for name in faults} == faults
    assert all(rows[name]["segments"] is None and rows[name]["error"] for name in faults)
    assert all(close(scores_of(rows[v.stem]), alone) for v, alone in zip(videos, expected, strict=True))


# -- when it happens ---------------------------------------------------------------------------------------------------

WINDOW = 2.0


def plain_video(colours: list[np.ndarray], *, seconds: int, fps: int) -> bytes:
    """``seconds`` of each colour."""

    def draw(number: int, width: int, height: int) -> np.ndarray:
        return np.broadcast_to(colours[number // (seconds * fps)], (height, width, 3)).copy()

    return make_video(num_frames=len(colours) * seconds * fps, fps=fps, width=32, height=32, draw=draw)


def colours_with_labels(model: Path, num_colours: int) -> dict[str, np.ndarray]:
    """Colours that the network tells apart: label → a colour that has it."""
    generator, found = np.random.default_rng(3), {}
    for colour in generator.integers(0, 256, (400, 3), dtype=np.uint8):
        label = max(
            scores := by_label(model, logits_alone(model, plain_video([colour], seconds=1, fps=5), [(0, 1)])),
            key=scores.get,
        )
        found.setdefault(label, colour)
        if len(found) == num_colours:
            return found
    raise AssertionError(f"only {sorted(found)} were found")


@pytest.mark.parametrize("minutes", [2, pytest.param(60, marks=pytest.mark.long)])
def test_every_change_is_found_within_a_stride(minutes: int, tmp_path, capfd) -> None:
    """Classes change every 14 s; windows of 2 s begin every second."""
    model = make_videomae(tmp_path / "model", initializer_range=0.3)
    colours = colours_with_labels(model, 2)
    shown = list(colours) * (minutes * 60 // 28)
    source = tmp_path / "long.mp4"
    source.write_bytes(plain_video([colours[label] for label in shown], seconds=14, fps=5))
    output = tmp_path / "out"
    score(source, model, output, segments=WINDOW, segment_stride=1.0)
    ((row,),) = [runs.read_rows(output)]
    changes = [
        after["start_seconds"]
        for before, after in itertools.pairwise(row["segments"])
        if before["label"] != after["label"]
    ]
    assert len(changes) == len(shown) - 1
    for number, change in enumerate(changes, start=1):
        middle = change + WINDOW / 2
        assert abs(middle - 14 * number) <= 1.0


# -- whole jobs --------------------------------------------------------------------------------------------------------


def score(source: Path, model: Path, output: Path, *, make_stages=default_stages, **more) -> list[dict]:
    values = {"segments": SECONDS, "max_failure_rate": 1.0, "device": "cpu", "runner": "local", **more}
    config = ScoreConfig(source=(str(source),), model=str(model), output=str(output), **values)
    return ScoreJob(config, make_stages=make_stages).run()


@pytest.mark.parametrize("name", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_a_driver_killed_in_the_middle_scores_each_video_once(tmp_path, model, name) -> None:
    source, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(source, num_videos=40, num_frames=120)
    flags = ("--segments", "0.4", "--rows-per-part", "4", "--runner", name)
    arguments = runs.command(source=source, model=model, output=output, flags=flags)
    process = runs.start(arguments)
    runs.wait_until(lambda: len(runs.parts(output)) >= 3 or process.poll() is not None, what="the point to kill at")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = {path: path.read_bytes() for path in runs.parts(output)}
    assert 3 <= len(before) < 10
    assert "resuming run" in runs.run(arguments)
    rows = runs.assert_each_once(output, uris)
    assert {(row["status"], len(row["segments"])) for row in rows} == {("ok", 10)}
    scores = [[segment["score"] for segment in row["segments"]] for row in rows]
    assert_same(scores, scores[:1] * len(scores), relative=FLOAT32_ROUNDING)  # all have the same pictures
    assert all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.long  # of streams, which go the same way, one is not
def test_a_worker_killed_in_the_middle_loses_and_doubles_no_row(tmp_path, model, runner) -> None:
    uris = runs.make_bucket(tmp_path / "videos", num_videos=24)
    stages = faulty_streams(state=tmp_path / "state")
    score(tmp_path / "videos", model, tmp_path / "out", make_stages=stages, runner=runner)
    rows = runs.assert_each_once(tmp_path / "out", uris)
    assert {row["status"] for row in rows} == {"ok"}
    assert len(list((tmp_path / "state").iterdir())) == 3, "the worker should have been killed three times"


def test_windows_are_work_of_their_own_and_say_so_in_the_view_config(tmp_path, model) -> None:
    runs.make_bucket(tmp_path / "videos", num_videos=2, num_frames=60)
    for more in ({"segments": None, "views": "1x1"}, {}, {"segments": "clip", "segment_stride": 0.4}):
        (summary,) = score(tmp_path / "videos", model, tmp_path / "out", **more)
        assert summary["num_already_done"] == 0
    assert score(tmp_path / "videos", model, tmp_path / "out") == [], "nothing is new"
    rows = runs.read_rows(tmp_path / "out")
    views = {row["result_key"]: json.loads(row["view_config"]) for row in rows}
    lengths = [(view.get("segment_seconds"), view.get("segment_stride_seconds")) for view in views.values()]
    clip = read_checkpoint(str(model)).view.clip_seconds
    assert sorted(lengths, key=str) == sorted([(None, None), (0.8, None), (float(clip), 0.4)], key=str)
    assert {row["segments"] is None for row in rows if "segment_seconds" not in views[row["result_key"]]} == {True}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--segments", "0"], "--segments: got 0.0, allowed is a number of seconds, at least 0.1"),
        (["--segments", "-2"], "--segments: got -2.0, allowed is"),
        (["--segments", "two"], "--segments: got 'two', allowed is a number or clip"),
        (["--segments", "--top-k", "3"], "--segments: got '--top-k', allowed is a number or clip"),
        (["--segments", "nan"], "--segments: got nan, allowed is"),
        (["--segment-stride", "1"], "--segment-stride: got 1.0, allowed is a stride with --segments"),
        (["--segments", "2", "--segment-stride", "0.01"], "--segment-stride: got 0.01, allowed is"),
        (["--segments", "2", "--views", "5x1"], "--views: got '5x1', allowed is 1x1 with --segments"),
        (["--segments", "2", "--streaming"], "--segments: got 2.0, allowed is none with --streaming"),
        (["--segments", "2", "--decoder", "pytorchvideo"], "--decoder: got 'pytorchvideo', allowed is vidray with"),
        (["--segments", "2", "--decoders", "3"], "--decoders: got '3', allowed is none with --segments"),
        (["--segments", "2", "--compile"], "--compile: got True, allowed is not with --segments"),
    ],
)
def test_what_means_nothing_is_refused_by_name(flags, message, tmp_path, capsys) -> None:
    places = ["--source", "v", "--model", "m", "--output", str(tmp_path / "out")]
    assert cli(["score", *places, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_whole_videos_is_refused_unless_that_is_asked_for(tmp_path, model) -> None:
    whole = dataclasses.replace(read_checkpoint(str(model)).view, span="full")
    config = ScoreConfig(source=("-",), model=str(model), output="-", segments=2.0)
    with pytest.raises(UsageError, match=r"--segments: this checkpoint was trained on whole videos .* --span full"):
        config.effective_view(whole)
    assert dataclasses.replace(config, span="full").effective_view(whole).segment_seconds == 2.0


# -- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """
import json, sys
from pathlib import Path
from tests.scoring.test_segments import make_stage
from tests.scoring.test_stream_stage import plan

def peak(pid):
    return next(int(line.split()[1]) * 1024 for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))

model, short, long = map(Path, sys.argv[1:])
asked = {"segments": 30.0, "segment_stride": None}
stage = make_stage(model, num_videos=1, asked=asked, child_module="vidray.sandbox.child")
for path in (short, long):
    (row,) = stage(plan([path])).to_pylist()
    number, sandbox = stage._sandboxes.get()
    stage._sandboxes.put((number, sandbox))
    print(json.dumps([row["status"], row["duration_seconds"], len(row["segments"]), peak("self"), peak(sandbox.pid)]))
"""


@pytest.mark.long
def test_an_hour_of_video_takes_little_more_memory_than_a_minute(tmp_path, model) -> None:
    """108,000 frames: of each a time stamp is kept, and no picture."""
    minute = make_video(num_frames=1800, width=48, height=48, gop_size=60, options={"qp": "40"})
    (tmp_path / "minute.mp4").write_bytes(minute)
    (tmp_path / "hour.mp4").write_bytes(repeated(minute, 60))
    arguments = [sys.executable, "-c", MEMORY, str(model), *(str(tmp_path / n) for n in ("minute.mp4", "hour.mp4"))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=runs.ROOT)
    short, long = (json.loads(line) for line in done.stdout.splitlines())
    assert (short[:3], long[:3]) == (["ok", 60, 2], ["ok", 3600, 120])
    file_bytes = (tmp_path / "hour.mp4").stat().st_size
    assert long[3] - short[3] < file_bytes + 16 * 1024**2, "the predictor grew by more than the file that it fetched"
    assert long[4] - short[4] < 32 * 1024**2, "the decoder grew"


@pytest.mark.long
def test_a_whole_job_on_s3(s3_bucket, tmp_path, model, capsys) -> None:
    """Videos, a manifest with columns of its own, and the output in a bucket; moments out of it."""
    import s3fs

    store = s3fs.S3FileSystem()
    for number in range(6):
        store.pipe_file(f"{s3_bucket}/videos/{number}.mp4", noisy_video(number, num_frames=61))
    manifest = "uri,camera\n" + "".join(f"{s3_bucket}/videos/{number}.mp4,{number}\n" for number in range(6))
    store.pipe_file(f"{s3_bucket}/manifest.csv", manifest.encode())
    score(f"{s3_bucket}/manifest.csv", model, f"{s3_bucket}/out", keep_columns="camera")
    rows = vidray.read(f"{s3_bucket}/out").to_pylist()
    assert [(row["uri"], row["camera"], len(row["segments"])) for row in rows] == [
        (f"{s3_bucket}/videos/{number}.mp4", number, 3) for number in range(6)
    ]
    assert cli(["export", "--output", f"{s3_bucket}/out", "--min-score", "0", "--to", f"{s3_bucket}/moments.csv"]) == 0
    assert store.cat_file(f"{s3_bucket}/moments.csv").startswith(b"uri,start_seconds,")
    assert cli(["verify", "--output", f"{s3_bucket}/out"]) == 0
