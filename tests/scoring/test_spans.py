"""`start_seconds` and `end_seconds` in a manifest: each span is scored as if it had been cut out, and counted alone."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import vidray
from tests.scoring.test_stream_stage import scores_of
from tests.support import runs
from tests.support.checkpoints import make_stream, make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_same
from tests.support.videos import make_video
from vidray.cli.main import main as cli
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.output import parquet_bytes, parquet_metadata
from vidray.storage.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

FPS, NUM_FRAMES = 30, 120
SPANS = [(None, None), (1.0, 2.5), (2.0, None), (None, 0.5), (3.0, 900.0)]
"""The last goes on after the video has ended."""
WINDOWS = {1.0: [(1, 1.6), (1.6, 2.2), (1.9, 2.5)], 3.0: [(3, 3.6), (3.4, 4)], None: [(0, 0.5)]}
"""Of 0.6 s, in some of the spans, by start (None: the one that ends at 0.5 s): worked out by hand."""


def cut(first: int, stop: int) -> bytes:
    """Some of the frames of one video, lossless: they differ a lot, so that scores do."""
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 4, 4, 3), dtype=np.uint8)

    def draw(number: int, width: int, height: int) -> np.ndarray:
        return pixels[first + number].repeat(height // 4, axis=0).repeat(width // 4, axis=1)

    return make_video(num_frames=stop - first, width=48, height=48, draw=draw, max_b_frames=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``whole.mp4``, and each span of it as a file of its own, ``0.mp4`` and so on."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "whole.mp4").write_bytes(cut(0, NUM_FRAMES))
    for number, (start, end) in enumerate(SPANS):
        stop = min(NUM_FRAMES, round((end or 900) * FPS))
        (folder / f"{number}.mp4").write_bytes(cut(round((start or 0) * FPS), stop))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    stream = make_stream(folder / "stream")
    return {"clips": make_videomae(folder / "clips", initializer_range=0.05), "stream": stream}


def write_manifest(path: Path, rows: list[tuple[str, float | None, float | None]]) -> Path:
    names = ("uri", "start_seconds", "end_seconds")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def score(source: Path, model: Path, output: Path, **more) -> list[dict]:
    values = {"span": "full", "max_failure_rate": 1.0, "device": "cpu", "runner": "local", **more}
    config = ScoreConfig(source=(str(source),), model=str(model), output=str(output), **values)
    return ScoreJob(config).run()


def current(output: Path) -> dict[tuple, dict]:
    """Rows by file name and span."""
    rows = vidray.read(str(output)).to_pylist()
    return {(Path(row["uri"]).stem, row["start_seconds"], row["end_seconds"]): row for row in rows}


@pytest.mark.parametrize(
    ("runner", "how"),
    [
        *(("local", how) for how in ("clips", "segments", "stream")),
        *(pytest.param("ray", how, marks=pytest.mark.long) for how in ("clips", "segments", "stream")),
    ],
    indirect=["runner"],
)
def test_a_span_scores_as_if_it_had_been_cut_out(folder, models, tmp_path, how, runner) -> None:
    asked = {
        "clips": {"views": "2x3"},
        "segments": {"segments": 0.6, "span": None},
        "stream": {"streaming": True, "timeline": 0.4, "span": None},
    }[how]
    manifest = write_manifest(tmp_path / "m.jsonl", [(str(folder / "whole.mp4"), *span) for span in SPANS])
    model = models["stream" if how == "stream" else "clips"]
    score(manifest, model, tmp_path / "spans", runner=runner, **asked)
    score(folder, model, tmp_path / "files", runner=runner, **asked)
    rows, alone = current(tmp_path / "spans"), current(tmp_path / "files")
    assert len(rows) == len(SPANS)
    for number, (start, end) in enumerate(SPANS):
        row, expected = rows["whole", start, end], alone[str(number), None, None]
        assert row["status"] == expected["status"] == "ok"
        assert_same(list(scores_of(row).values()), list(scores_of(expected).values()), relative=FLOAT32_ROUNDING)
        assert row["num_frames_decoded"] == expected["num_frames_decoded"] == row["num_frames_expected"]
        assert row["duration_seconds"] == pytest.approx(4.0)
        for name, times in (("segments", ("start_seconds", "end_seconds")), ("timeline", ("end_seconds",))):
            got = [tuple(entry[time] for time in times) for entry in row[name] or ()]
            shifted = [tuple(entry[time] + (start or 0) for time in times) for entry in expected[name] or ()]
            assert np.array(got) == pytest.approx(np.array(shifted), abs=1e-6)
            assert bool(got) == (name.rstrip("s") in how or (name, how) == ("timeline", "stream"))
        if how == "segments" and start in WINDOWS and (start or end):
            got = [(segment["start_seconds"], segment["end_seconds"]) for segment in row["segments"]]
            assert np.array(got) == pytest.approx(np.array(WINDOWS[start]), abs=1e-6)


def test_nights_pay_for_new_spans_alone_and_each_is_counted_by_itself(folder, models, tmp_path, capsys) -> None:
    video, output, manifest = str(folder / "whole.mp4"), tmp_path / "out", tmp_path / "m.jsonl"
    bounds = [(0.0, None), (1.0, 2.0), (1.0, 2.0 + 1e-9), (50.0, 60.0)]  # the third is the second
    write_manifest(manifest, [(video, *span) for span in bounds])
    (first,) = score(manifest, models["clips"], output)
    assert (first["num_listed"], first["num_scored"], first["num_failed"]) == (3, 2, 1)
    assert current(output)["whole", 50.0, 60.0]["status"] == "corrupt"

    write_manifest(manifest, [(video, *span) for span in [*bounds, (2.0, 3.0)]])
    (second,) = score(manifest, models["clips"], output)
    assert (second["num_listed"], second["num_already_done"], second["num_scored"]) == (4, 2, 1)
    assert second["untried"]["given up"]["count"] == 1

    (tmp_path / "plain.jsonl").write_text(json.dumps({"uri": video}) + "\n")
    assert score(tmp_path / "plain.jsonl", models["clips"], output) == [], "from 0 on is the whole video"
    assert list(current(output)) == [("whole", *span) for span in [(None, None), (1, 2), (2, 3), (50, 60)]]
    assert cli(["verify", "--output", str(output)]) == 0


@pytest.mark.parametrize("where", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_a_driver_killed_in_the_middle_scores_each_span_once(folder, models, tmp_path, where) -> None:
    output, spans = tmp_path / "out", [(number / 40, number / 40 + 0.5) for number in range(120)]
    manifest = write_manifest(tmp_path / "m.jsonl", [(str(folder / "whole.mp4"), *span) for span in spans])
    flags = (*runs.TINY_VIEWS, "--rows-per-part", "4", "--runner", where)
    arguments = runs.command(source=manifest, model=models["clips"], output=output, flags=flags)
    process = runs.start(arguments)
    runs.wait_until(lambda: len(runs.parts(output)) >= 3 or process.poll() is not None, what="the point to kill at")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "resuming run" in runs.run(arguments)
    rows = runs.read_rows(output)
    found = sorted((row["start_seconds"] or 0.0, row["end_seconds"]) for row in rows)
    assert np.array(found) == pytest.approx(np.array(spans))
    assert {row["status"] for row in rows} == {"ok"}


def test_an_output_from_before_there_were_spans_goes_on(folder, models, tmp_path) -> None:
    """Its parts, its unfinished plan and its keys are as version 4 wrote them."""
    output, store = tmp_path / "out", Store(str(tmp_path / "out"))
    score(folder, models["clips"], output, rows_per_part=2)
    names = ["start_seconds", "end_seconds"]
    for path in [*output.rglob("part-*.parquet"), *output.rglob("plan.parquet")]:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
        metadata = parquet_metadata(table.schema)
        path.write_bytes(parquet_bytes(table.replace_schema_metadata(None).drop_columns(names), metadata))
    for path in [*output.rglob("_SUCCESS"), *output.rglob("keys.parquet"), *output.rglob("summary.json")]:
        path.unlink()
    sorted(output.rglob("part-*.parquet"))[-1].unlink()
    (resumed,) = score(folder, models["clips"], output)
    assert (resumed["num_scored"], resumed["num_failed"]) == (len(SPANS) + 1, 0)
    runs.assert_each_once(output, [str(path) for path in folder.iterdir()])
    assert score(folder, models["clips"], output) == []
    assert len(store.list("_runs")) == len(list((output / "_runs").rglob("*.*"))) + 1  # with _SUCCESS: one run
    assert cli(["verify", "--output", str(output)]) == 0


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (2, 1, "row 2 of the manifest .*: a span must end after it starts, .* got 2 to 1 seconds"),
        (-1, None, "not start before 0, got -1 to None"),
        ("soon", None, "could not convert string to float: 'soon'"),
        (None, float("nan"), "must be finite, got None and nan"),
    ],
)
def test_bounds_that_mean_nothing_are_refused_by_row(folder, models, tmp_path, start, end, message) -> None:
    video = str(folder / "whole.mp4")
    manifest = write_manifest(tmp_path / "m.jsonl", [(video, None, None), (video, start, end)])
    for more in ({}, {"keep_columns": "all"}):
        with pytest.raises(vidray.errors.UsageError, match=message):
            score(manifest, models["clips"], tmp_path / "out", **more)
