"""`--embeddings`: what the classifier is given, from the forward that makes the scores, which stay as they are."""

from __future__ import annotations

import dataclasses
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.scoring.test_predictor import break_model, make_video
from tests.scoring.test_stream_stage import LIMITS, noisy_video, plan
from tests.support import runs
from tests.support.checkpoints import TINY, make_family, make_stream, make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_differs, assert_same
from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vidray.cli.main import main as cli
from vidray.results.read import read
from vidray.results.verify import VerifyConfig, verify
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.output import PREDICTION_SCHEMA
from vidray.scoring.planning import default_rows_per_part
from vidray.scoring.predictor import Predictor
from vidray.scoring.stream_stage import StreamStage
from vidray.types import TimeRange
from vidray.video.views import decode_views

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("a", "b", "c")
LENGTHS = (31, 7, 61)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for number, num_frames in enumerate(LENGTHS):
        (folder / f"{number:04d}.mp4").write_bytes(noisy_video(number, num_frames=num_frames))
    return sorted(folder.iterdir())


def features_of(folder: Path, views_VTHWC: np.ndarray) -> torch.Tensor:
    """(V, features): by the network as Transformers loads it, whose classifier gives back what it is given."""
    checkpoint = read_checkpoint(str(folder))
    family, view = checkpoint.family, checkpoint.view
    model_class, config_class = family.load_classes()
    config = config_class.from_dict(checkpoint.config)
    network = model_class.from_pretrained(folder, config=config, attn_implementation=family.attention).eval()
    network.classifier = torch.nn.Identity()
    pixels = (views_VTHWC / 255 - np.array(view.mean)) / np.array(view.std)
    with torch.inference_mode():
        pixels_VTCHW = torch.from_numpy(pixels).float().permute(0, 1, 4, 2, 3)
        return network(**{family.input_name: pixels_VTCHW}).logits.reshape(len(pixels), -1)


def logits_of(folder: Path, features: Any) -> torch.Tensor:
    """What the classifier's weights, as they lie in the file, make of features."""
    weights = load_file(folder / "model.safetensors")
    return torch.as_tensor(features) @ weights["classifier.weight"].T + weights["classifier.bias"]


# -- of views ----------------------------------------------------------------------------------------------------------


def make(folder: Path, family: str) -> Path:
    return make_stream(folder, labels=LABELS) if family == "stream" else make_family(folder, family, labels=LABELS)


@pytest.mark.parametrize("family", [*TINY, "stream"])
def test_every_family_gives_what_its_classifier_is_given_and_the_same_scores(family: str, tmp_path) -> None:
    folder = make(tmp_path, family)
    checkpoint = read_checkpoint(str(folder))
    batch = [make_video(checkpoint.view, num_views=views, seed=views) for views in (2, 1, 3)]
    plain = Predictor(checkpoint, device="cpu", batch_size=2).predict(batch)
    mean = Predictor(checkpoint, device="cpu", batch_size=2, embedding="mean").predict(batch)
    unit = Predictor(checkpoint, device="cpu", batch_size=2, embedding="unit").predict(batch)
    for views, without, with_mean, with_unit in zip(batch, plain, mean, unit, strict=True):
        assert without.embedding is None
        for scores in (with_mean, with_unit):
            assert scores.top_k == without.top_k
            np.testing.assert_array_equal(scores.logits, without.logits)
        expected = features_of(folder, views).mean(dim=0)
        assert_same(with_mean.embedding, expected, relative=FLOAT32_ROUNDING)
        assert_same(with_unit.embedding, expected / expected.norm(), relative=FLOAT32_ROUNDING)
        assert_same(logits_of(folder, with_mean.embedding), without.logits.mean(axis=0), relative=FLOAT32_ROUNDING)
        assert with_mean.embedding.dtype == with_unit.embedding.dtype == np.float32


def test_lanes_side_by_side_do_not_take_each_other_s_features(model, monkeypatch) -> None:
    """Each forward waits for the other lane's before its features are taken."""
    checkpoint, barrier = read_checkpoint(str(model)), threading.Barrier(2)
    predictor = Predictor(checkpoint, device="cpu", batch_size=1, num_threads=2, embedding="mean")
    (views,) = [make_video(checkpoint.view, num_views=2)]
    halves = [scores.embedding for scores in predictor.predict([views[:1], views[1:]])]

    def wait(pixels: torch.Tensor, output: Any) -> Any:
        barrier.wait(timeout=30)
        return output

    break_model(monkeypatch, predictor, wait)
    together = [scores.embedding for scores in predictor.predict([views[:1], views[1:]])]
    assert_differs(halves[0], halves[1], relative=FLOAT32_ROUNDING, factor=100)
    for got, expected in zip(together, halves, strict=True):
        assert_same(got, expected, relative=FLOAT32_ROUNDING)


def test_calls_from_many_threads_get_their_own_embeddings(model) -> None:
    checkpoint = read_checkpoint(str(model))
    calls = [[make_video(checkpoint.view, num_views=n % 3 + 1, seed=n)] for n in range(12)]
    predictor = Predictor(checkpoint, device="cpu", batch_size=2, num_threads=2, embedding="mean")
    expected = [predictor.predict(call)[0].embedding for call in calls]
    with ThreadPoolExecutor(len(calls)) as threads:
        got = list(threads.map(predictor.predict, calls))
    for (scores,), alone in zip(got, expected, strict=True):
        assert_same(scores.embedding, alone, relative=FLOAT32_ROUNDING)


def test_what_fills_a_padded_batch_is_in_no_embedding(model) -> None:
    checkpoint = read_checkpoint(str(model))
    predictor = Predictor(checkpoint, device="cpu", batch_size=5, embedding="mean")
    batch = [make_video(checkpoint.view, num_views=views, seed=views) for views in (3, 1, 3)]
    expected = [scores.embedding for scores in predictor.predict(batch)]
    predictor._pads = True
    for scores, embedding in zip(predictor.predict(batch), expected, strict=True):
        assert_same(scores.embedding, embedding, relative=FLOAT32_ROUNDING)


def test_a_video_that_the_network_cannot_score_has_no_embedding(model, monkeypatch) -> None:
    def poison(pixels: torch.Tensor, output: Any) -> Any:
        output.logits[:] = float("nan")
        return output

    checkpoint = read_checkpoint(str(model))
    predictor = Predictor(checkpoint, device="cpu", embedding="mean")
    break_model(monkeypatch, predictor, poison)
    (scores,) = predictor.predict([make_video(checkpoint.view, num_views=1)])
    assert scores.error is not None
    assert scores.embedding is None


def test_features_of_half_precision_are_averaged_in_float32(model) -> None:
    checkpoint = read_checkpoint(str(model))
    views = [make_video(checkpoint.view, num_views=3)]
    (scores,) = Predictor(checkpoint, device="cpu", precision="bf16", embedding="mean").predict(views)
    assert scores.embedding.dtype == np.float32
    assert_same(scores.embedding, features_of(model, views[0]).mean(dim=0), relative=0.05)


# -- of windows --------------------------------------------------------------------------------------------------------


def windows_stage(model: Path, **more: Any) -> StreamStage:
    config = ScoreConfig(source=("-",), model=str(model), output="-", segments=0.8, segment_stride=0.5, span="full")
    checkpoint = read_checkpoint(str(model))
    more = {"limits": LIMITS, "device": "cpu", "top_k": 3, "num_videos": 3, **more}
    return StreamStage(checkpoint=checkpoint, view=config.effective_view(checkpoint.view), **more)


def without_embeddings(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("uri", "status", "label", "score", "top_k", "num_views")}
    return kept | {"segments": [{**segment, "embedding": None} for segment in row["segments"]]}


@pytest.mark.parametrize("family", [*TINY, "stream"])
def test_every_family_embeds_each_window_and_the_whole_video(family: str, tmp_path, videos) -> None:
    """One window at a time: else chance decides which windows share a batch, and a batch the last bit of a score."""
    folder, video = make(tmp_path / "model", family), plan(videos[2:])
    (plain,) = windows_stage(folder, num_videos=1)(video).to_pylist()
    (row,) = windows_stage(folder, num_videos=1, embedding="mean")(video).to_pylist()
    assert plain["embedding"] is None
    assert without_embeddings(row) == without_embeddings(plain)
    views = window_views(folder, videos[2], row)
    expected = torch.cat([features_of(folder, view) for view in views])
    for segment, features in zip(row["segments"], expected, strict=True):
        assert_same(segment["embedding"], features, relative=FLOAT32_ROUNDING)
    assert_same(row["embedding"], expected.mean(dim=0), relative=FLOAT32_ROUNDING)


def window_views(folder: Path, video: Path, row: dict[str, Any]) -> list[np.ndarray]:
    """Of each window, decoded as a video of its own."""
    view = dataclasses.replace(read_checkpoint(str(folder)).view, span="full", num_clips=1, num_crops=1)
    bounds = [
        [Fraction(segment[name]).limit_denominator(10**6) for name in ("start_seconds", "end_seconds")]
        for segment in row["segments"]
    ]
    ranges = [TimeRange(start_seconds=start, end_seconds=end) for start, end in bounds]
    return [decode_views(video.read_bytes(), view=view, limits=LIMITS, time_range=at)[0] for at in ranges]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_windows_of_unit_length_are_those_of_the_means(num_threads: int, model, videos) -> None:
    mean = windows_stage(model, embedding="mean", num_threads=num_threads)(plan(videos)).to_pylist()
    unit = windows_stage(model, embedding="unit", num_threads=num_threads)(plan(videos)).to_pylist()
    for row, scaled in zip(mean, unit, strict=True):
        for plain, short in zip([row, *row["segments"]], [scaled, *scaled["segments"]], strict=True):
            vector = np.array(plain["embedding"])
            assert_same(short["embedding"], vector / np.linalg.norm(vector), relative=FLOAT32_ROUNDING)


# -- whole jobs --------------------------------------------------------------------------------------------------------


def score(source: Path, model: Path, output: Path, **more: Any) -> list[dict]:
    values = {"views": "2x1", "max_failure_rate": 1.0, "device": "cpu", "runner": "local", **more}
    config = ScoreConfig(source=(str(source),), model=str(model), output=str(output), **values)
    return ScoreJob(config).run()


@runs.ON_RAY_LONG
def test_a_job_writes_embeddings_beside_the_scores_that_it_writes_without(tmp_path, model, videos, runner) -> None:
    source, output = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    for video in videos:
        (source / video.name).write_bytes(video.read_bytes())
    (source / "bad.mp4").write_bytes(b"no video")
    for more in ({}, {"embeddings": True}, {"embeddings": True, "normalize": True}):
        (summary,) = score(source, model, output, runner=runner, **more)
        assert (summary["num_already_done"], summary["num_scored"], summary["num_failed"]) == (0, 3, 1)
        assert score(source, model, output, runner=runner, **more) == [], "nothing is new"
    for part in runs.parts(output):
        assert pq.read_table(part, partitioning=None).schema.remove_metadata().equals(PREDICTION_SCHEMA)
    rows = runs.read_rows(output)
    assert len({row["result_key"] for row in rows}) == 3
    checkpoint = read_checkpoint(str(model))
    for video in videos:
        plain, mean, unit = sorted(
            (row for row in rows if Path(row["uri"]).name == video.name), key=lambda row: row["scored_at"]
        )
        expected = features_of(model, views_of(checkpoint, video)).mean(dim=0)
        assert plain["embedding"] is None
        assert_same(mean["embedding"], expected, relative=FLOAT32_ROUNDING)
        assert_same(unit["embedding"], expected / expected.norm(), relative=FLOAT32_ROUNDING)
        for name in ("label", "score", "top_k", "view_config", "fingerprint"):
            assert mean[name] == unit[name] == plain[name]
    assert [row["embedding"] for row in rows if row["status"] != "ok"] == [None] * 3
    assert verify(VerifyConfig(output=str(output))).problems == ()
    current = read(str(output), columns=["uri", "embedding"])
    assert [len(vector) for vector in current["embedding"].to_pylist() if vector] == [32] * 6


def views_of(checkpoint: Checkpoint, video: Path) -> np.ndarray:
    view = dataclasses.replace(checkpoint.view, num_clips=2, num_crops=1)
    return decode_views(video.read_bytes(), view=view, limits=LIMITS)[0]


def test_parts_are_small_where_each_window_has_an_embedding() -> None:
    assert default_rows_per_part(10**6, chunked=True, embeddings=True) == 50
    assert default_rows_per_part(10**6, chunked=True) == 500
    assert default_rows_per_part(10**6, embeddings=True) == default_rows_per_part(10**6) == 4000


def test_the_queries_of_the_docs_find_what_is_most_similar(tmp_path, model, videos, capsys) -> None:
    score(videos[0].parent, model, tmp_path, embeddings=True, segments=0.8, views=None)
    text = (runs.ROOT / "docs/output.md").read_text()
    (current,) = re.findall(r"```sql\n-- current\n(SELECT \* EXCLUDE.*?)```", text, re.DOTALL)
    page = (runs.ROOT / "docs/embeddings.md").read_text()
    (queries,) = re.findall(r"```sql\n-- similar(.*?)```", page, re.DOTALL)
    of_videos, of_windows = queries.replace("/videos/a.mp4", str(videos[0])).split(";\n\n-- similar")
    rows = {row["uri"]: row for row in runs.read_rows(tmp_path)}
    asked = np.array(rows[str(videos[0])]["embedding"])

    def similarity(vector: list[float]) -> float:
        return float(asked @ vector / np.linalg.norm(asked) / np.linalg.norm(vector))

    with duckdb.connect() as db:
        db.sql("CREATE VIEW predictions AS " + current.replace("'scores/", f"'{tmp_path}/"))
        found = db.sql(of_videos.partition("\n")[2]).fetchall()
        windows = db.sql(of_windows.partition("\n")[2]).fetchall()
    expected = {uri: similarity(row["embedding"]) for uri, row in rows.items() if uri != str(videos[0])}
    assert dict(found) == pytest.approx(expected, abs=1e-5)
    assert [uri for uri, _ in found] == sorted(expected, key=expected.__getitem__, reverse=True)
    assert cli(["similar", "--output", str(tmp_path), "--to", str(videos[0])]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(uri, float(value)) for value, uri in printed] == [(uri, pytest.approx(s, abs=1e-4)) for uri, s in found]
    each = [similarity(segment["embedding"]) for row in rows.values() for segment in row["segments"]]
    assert [values[-1] for values in windows] == pytest.approx(sorted(each, reverse=True), abs=1e-5)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--normalize"], "--normalize: got True, allowed is only with --embeddings"),
        (["--embeddings", "--streaming"], "--embeddings: got True, allowed is not with --streaming"),
        (["--embeddings", "--compile"], "--compile: got True, allowed is not with --embeddings"),
    ],
)
def test_what_means_nothing_is_refused_by_name(flags, message, tmp_path, capsys) -> None:
    places = ["--source", "v", "--model", "m", "--output", str(tmp_path / "out")]
    assert cli(["score", *places, *flags]) == 2
    assert message in capsys.readouterr().err
