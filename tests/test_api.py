"""``import vidray`` does what the commands do, with the names of their flags, and loads nothing before it is needed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import vidray
from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.videos import make_video
from vidray.api import make_config
from vidray.cli.demo import motion_video
from vidray.errors import RunError, UsageError, VideoError
from vidray.results.read import CURRENT_SQL
from vidray.scoring.config import ScoreConfig
from vidray.scoring.output import PREDICTION_SCHEMA
from vidray.types import Limits

VIEWS = {"views": "1x1", "span": "full"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"), initializer_range=0.5)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Four videos that differ, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for number, label in enumerate(("left", "right", "up", "growing")):
        (folder / f"{label}.mp4").write_bytes(motion_video(label, seed=number, num_frames=12))
    (folder / "broken.mp4").write_bytes(b"\0" * 99)
    return folder


def test_importing_loads_nothing_heavy() -> None:
    script = (
        "import sys, vidray; print([n for n in ('torch', 'ray', 'transformers', 'av', 'pyarrow') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=runs.ROOT)
    assert done.stdout == "[]\n"
    assert set(vidray.__all__) >= {"score", "train", "evaluate", "load", "read", "register"}
    assert all(getattr(vidray, name).__doc__ for name in vidray.__all__)


def test_a_bucket_is_scored_and_read_and_a_classifier_gives_the_same_scores(model, videos, tmp_path, capfd) -> None:
    output = tmp_path / "out"
    result = vidray.score(videos, model, output, quiet=True, max_failure_rate=0.5, **VIEWS)
    assert capfd.readouterr() == ("", "")
    assert (result.verdict.num_listed, result.verdict.num_scored, result.verdict.num_failed) == (5, 4, 1)
    rows = result.read().to_pylist()
    assert [Path(row["uri"]).stem for row in rows] == ["broken", "growing", "left", "right", "up"]
    assert rows[0]["status"] != "ok"
    good = rows[1:]
    with vidray.load(model, top_k=3, **VIEWS) as classifier:
        answers = classifier([row["uri"] for row in good])
        one = classifier(Path(good[0]["uri"]))
        assert one == classifier(Path(good[0]["uri"]).read_bytes())
        assert one == close_to(answers[0]), "alone and beside others, but for rounding"
        with pytest.raises(VideoError, match="not a video"):
            classifier(rows[0]["uri"])
        with pytest.raises(VideoError):
            classifier(str(tmp_path / "nowhere.mp4"))
    for row, answer in zip(good, answers, strict=True):
        assert answer == close_to(row["top_k"][:3])
    assert vidray.score(videos, model, output, quiet=True, max_failure_rate=0.5, **VIEWS).verdict.num_scored == 0


def close_to(entries: list[dict]) -> list[dict]:
    return [{"score": pytest.approx(entry["score"], rel=1e-5), "label": entry["label"]} for entry in entries]


def test_frames_in_memory_score_as_the_file_that_holds_them(model) -> None:
    """H.264 in RGB, losslessly, so that both are the same pixels."""

    def stripes(number: int, width: int, height: int) -> np.ndarray:
        at = (np.arange(width) * 7 + np.arange(height)[:, None] * 3 + number * 20) % 256
        return np.stack([at, 255 - at, at // 2], axis=-1).astype(np.uint8)

    data = make_video(num_frames=40, width=96, height=72, fps=25, codec="libx264rgb", pix_fmt="rgb24", draw=stripes)
    with av.open(io.BytesIO(data)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with vidray.load(model, views="3x3") as classifier:
        from_file, from_memory = classifier([data, frames], fps=25)
        assert from_file == from_memory
        assert classifier(frames, fps=25) == from_file
        for wrong in (frames[0], frames.astype(np.float32), frames[:0], frames[..., :2]):
            with pytest.raises(ValueError, match="frames must be uint8"):
                classifier(wrong)


def test_a_model_is_trained_and_evaluated(model, tmp_path, one_thread, capfd) -> None:
    source = runs.make_classes(tmp_path / "videos", num_videos=16)
    capfd.readouterr()
    figures = vidray.train([source], model, tmp_path / "trained", quiet=True, epochs=1, flip=False, **VIEWS)
    assert 0 <= figures["accuracy"] <= 1
    evaluated = vidray.evaluate(source, tmp_path / "trained", quiet=True)
    assert evaluated["num_videos"] == 16
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("call", [vidray.score, vidray.train])
def test_a_mistyped_option_is_named_with_the_nearest(call, tmp_path) -> None:
    with pytest.raises(
        TypeError, match=r"got 'max_failure_rat', which is no option; the nearest: \['max_failure_rate'"
    ):
        call("videos", "model", tmp_path / "out", max_failure_rat=0.5)
    with pytest.raises(UsageError, match="--views: got '5'"):
        call("videos", "model", tmp_path / "out", views="5")
    assert not (tmp_path / "out").exists()


def test_options_are_those_of_the_flags_and_are_checked_as_these(tmp_path) -> None:
    places = {"source": tmp_path, "model": "m", "output": "o"}
    config = make_config(ScoreConfig, **places, secret_parameters="auth", extensions=[".bin"], max_frames=7)
    assert (config.source, config.secret_parameters, config.extensions) == ((str(tmp_path),), ("auth",), (".bin",))
    assert config.limits == Limits(max_frames=7)
    with pytest.raises(UsageError, match="--device: got 'gpu', allowed is auto, cpu, cuda"):
        make_config(ScoreConfig, **places, device="gpu")
    for name, value in (("dry_run", True), ("config", "nightly.yaml")):
        with pytest.raises(TypeError, match=f"'{name}' is for the command line"):
            make_config(ScoreConfig, **places, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"), [({"span": "bogus"}, "span"), ({"stride": 0}, "stride"), ({"top_k": 0}, "top_k")]
)
def test_a_classifier_refuses_what_it_cannot_do(model, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        vidray.load(model, **options)


def test_reading_gives_the_current_rows_as_the_docs_define_them(model, videos, tmp_path) -> None:
    """After an overwrite, and with another view's rows beside."""
    bucket, output = tmp_path / "bucket", tmp_path / "out"
    bucket.mkdir()
    for name in ("left", "right"):
        (bucket / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
    vidray.score(bucket, model, output, quiet=True, **VIEWS)
    (bucket / "left.mp4").write_bytes((videos / "up.mp4").read_bytes())
    vidray.score(bucket, model, output, quiet=True, **VIEWS)
    vidray.score(bucket, model, output, quiet=True, **{**VIEWS, "views": "2x1"})
    table = vidray.read(output)
    assert table.schema.equals(PREDICTION_SCHEMA)
    assert len(runs.read_rows(output)) == 5
    assert [Path(uri).stem for uri in table["uri"].to_pylist()] == ["left", "left", "right", "right"]
    etag = f"{(bucket / 'left.mp4').stat().st_mtime_ns}-"
    assert all(row["etag"].startswith(etag) for row in table.to_pylist()[:2])
    assert vidray.read(output, columns=["label", "uri"]).column_names == ["label", "uri"]
    with pytest.raises(KeyError, match="no such column"):
        vidray.read(output, columns=["labl"])
    with pytest.raises(RunError, match="holds no rows"):
        vidray.read(tmp_path / "bucket")


def test_current_means_what_the_docs_say() -> None:
    text = (runs.ROOT / "docs/output.md").read_text()
    query = text.split("-- current\n")[1].split("```")[0]
    table = "read_parquet('scores/predictions/*/*.parquet', union_by_name = true, hive_partitioning = false)"
    assert query.replace(table, "predictions").split() == CURRENT_SQL.split()


def test_a_row_of_an_older_version_has_null_where_it_had_no_column(model, videos, tmp_path) -> None:
    vidray.score(videos / "left.mp4", model, tmp_path, quiet=True, **VIEWS)
    (part,) = runs.parts(tmp_path)
    table = pa.parquet.read_table(part, partitioning=None).drop_columns(["num_time_jumps", "planned_at"])
    part.unlink()
    pa.parquet.write_table(table, part)
    (row,) = vidray.read(tmp_path).to_pylist()
    assert row["num_time_jumps"] is None
    assert row["status"] == "ok"
