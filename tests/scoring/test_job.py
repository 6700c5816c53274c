"""The main job, end to end on real parts: sources in, one row per video out."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_stages import poison_stages
from tests.support.http_server import FileServer
from tests.support.poison_child import poisoned
from tests.support.videos import audio_only, make_video
from vidray.checkpoints.checkpoint import result_key
from vidray.errors import RunError, TooManyFailuresError, UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.output import PREDICTION_SCHEMA
from vidray.scoring.stage_specs import default_stages
from vidray.types import Limits, ViewConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


def score(source: object, model: object, output: object, *, make_stages=default_stages, **more) -> list[dict]:
    values = {"views": "1x1", "span": "full", "max_failure_rate": 1.0, "runner": "local", **more}
    sources = source if isinstance(source, tuple) else (str(source),)
    config = ScoreConfig(source=sources, model=str(model), output=str(output), **values)
    return ScoreJob(config, make_stages=make_stages).run()


def contents(output: Path) -> dict[Path, bytes]:
    """Every file of an output but leases and verdicts."""
    own = ("_lease", "_verdicts")
    paths = [path for path in output.rglob("*") if path.is_file() and path.relative_to(output).parts[0] not in own]
    return {path: path.read_bytes() for path in paths}


@runs.ON_RAY_LONG
def test_nights_over_a_bucket_that_changes(tmp_path, model, runner):
    """New, changed, deleted and failed objects, a new model, other views: every night pays for just what is new."""
    videos, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(videos, num_videos=5)
    (videos / "bad.mp4").write_bytes(b"no video")
    first = score(videos, model, output, runner=runner)
    assert [(s["num_listed"], s["num_already_done"], s["num_scored"], s["num_failed"]) for s in first] == [(6, 0, 5, 1)]
    runs.assert_each_once(output, [*uris, str(videos / "bad.mp4")])
    before = contents(output)

    assert score(videos, model, output, runner=runner) == [], "nothing is new"
    assert contents(output) == before, "a run without work leaves its verdict and nothing else"

    (videos / "new.mp4").write_bytes(make_video(num_frames=8))
    Path(uris[0]).write_bytes(make_video(num_frames=12))
    Path(uris[1]).unlink()
    second = score(videos, model, output, runner=runner)
    assert [(s["num_listed"], s["num_already_done"], s["num_scored"]) for s in second] == [(6, 3, 2)]
    assert second[0]["untried"]["given up"] == {
        "count": 1,
        "status": "unsupported",
        "example": str(videos / "bad.mp4"),
    }

    retried = score(videos, model, output, retry_failed=True, runner=runner)
    assert [(s["num_scored"], s["num_failed"]) for s in retried] == [(0, 1)]
    bad = [row for row in runs.read_rows(output) if row["uri"].endswith("bad.mp4")]
    assert [row["attempts"] for row in bad] == [1, 2]

    assert [s["num_scored"] + s["num_failed"] for s in score(videos, model, output, views="2x3", runner=runner)] == [6]
    other = make_videomae(tmp_path / "other", seed=1)
    assert [s["num_scored"] + s["num_failed"] for s in score(videos, other, output, runner=runner)] == [6]
    ok = duckdb.sql(f"""SELECT uri, etag, result_key, count(*) n FROM '{output}/predictions/*/*.parquet'
                        WHERE status = 'ok' GROUP BY ALL HAVING n > 1""").fetchall()
    assert ok == [], "a video has at most one ok row per version, model and views"


def test_every_part_says_all_that_the_schema_promises(tmp_path, model):
    runs.make_bucket(tmp_path / "videos", num_videos=2, num_frames=10)
    score(tmp_path / "videos", model, tmp_path / "out", views="2x3", top_k=3)
    part = pq.read_table(runs.parts(tmp_path / "out")[0], partitioning=None)
    assert part.schema.remove_metadata().equals(PREDICTION_SCHEMA)
    row = part.to_pylist()[0]
    assert row["status"] == "ok"
    assert row["error"] is None
    assert (row["width"], row["height"], row["codec"], row["num_views"]) == (64, 48, "h264", 6)
    assert row["duration_seconds"] == pytest.approx(10 / 30, abs=1e-3)
    assert row["fps"] == pytest.approx(30)
    assert row["num_frames_decoded"] == row["num_frames_expected"]
    assert [entry["score"] for entry in row["top_k"]] == sorted((e["score"] for e in row["top_k"]), reverse=True)
    assert len(row["top_k"]) == 3
    assert (row["label"], row["score"]) == (row["top_k"][0]["label"], row["top_k"][0]["score"])
    assert row["size_bytes"] == (tmp_path / "videos" / "0000.mp4").stat().st_size
    assert json.loads(row["view_config"])["num_crops"] == 3


@runs.ON_RAY_LONG
def test_the_summary_accounts_for_every_listed_object_and_for_the_time(tmp_path, model, runner):
    videos, output = tmp_path / "videos", tmp_path / "out"
    runs.make_bucket(videos, num_videos=3)
    score(videos, model, output, runner=runner)
    runs.make_bucket(videos, num_videos=12)
    (videos / "sound.mp4").write_bytes(audio_only())
    (videos / "empty.mp4").touch()
    (summary,) = score(videos, model, output, runner=runner)
    stored = json.loads(runs.markers(output, "summary.json")[-1].read_text())
    assert stored == summary
    assert summary["failed_by_status"] == {"no_video": 1, "corrupt": 1}
    assert summary["num_listed"] == 14
    # The three videos of the first night were written anew, so they have other etags.
    assert summary["num_already_done"] + summary["num_scored"] + summary["num_failed"] == 14
    assert len(summary["sandbox"]) == 1, "one machine"
    assert "closed by the kernel" in summary["sandbox"][0]
    timing = summary["this_process"]
    assert timing["num_videos"] == summary["num_scored"] + summary["num_failed"]
    assert set(timing["stage_seconds"]) == {"fetch", "decode", "predict"}
    assert sum(timing["stage_share"].values()) == pytest.approx(1)
    assert timing["held_back_by"] is None, "so short a run does not tell"
    assert all(0 < timing["stage_busy"][stage] <= 1 for stage in ("decode", "predict"))
    assert 0 < timing["start_up_seconds"] < timing["seconds"]


def test_too_many_failures_end_with_code_3_and_a_failed_marker_after_all_rows_are_written(tmp_path, model):
    videos, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(videos, num_videos=4)
    (videos / "z.mp4").write_bytes(b"")
    with pytest.raises(TooManyFailuresError, match="1 of 5"):
        score(videos, model, output, max_failure_rate=0.1)
    runs.assert_each_once(output, [*uris, str(videos / "z.mp4")])
    assert runs.markers(output) == []
    assert len(runs.markers(output, "_FAILED")) == 1
    with pytest.raises(TooManyFailuresError, match=r"1 of 5 listed videos have no scores.*1 \(mostly corrupt"):
        score(videos, model, output, max_failure_rate=0.1)  # trying again makes a bad night no better
    assert len(runs.markers(output, "_FAILED")) == 1, "there was nothing to run"


def test_what_cannot_be_read_is_named_every_night_until_it_can(tmp_path, model):
    """Eight objects that the store refuses: never "nothing new", never exit code 0, and scored once access is back."""
    runs.make_bucket(tmp_path / "videos", num_videos=10)
    with FileServer(tmp_path / "videos") as server:
        uris = [f"{server.url}/{number:04d}.mp4" for number in range(10)]
        manifest = tmp_path / "list.csv"
        manifest.write_text("uri,etag\n" + "".join(f"{uri},e\n" for uri in uris))
        server.refused = {f"/{number:04d}.mp4" for number in range(8)}
        places = {"source": manifest, "model": model, "output": tmp_path / "out"}
        night = runs.command(**places, flags=(*runs.TINY_VIEWS, "--max-attempts", "3"))
        first = verdict_of(runs.run(night, code=3))
        assert (first["num_scored"], first["failed_by_status"]) == (2, {"access_denied": 8})
        for _ in range(4):
            text = runs.run(night, code=3)
            assert "holds every listed object" not in text
            assert "nothing to score now: listed 10, done before 2, 8 (mostly access_denied, such as http://" in text
            verdict = verdict_of(text)
            assert verdict["deferred"] == {"count": 8, "status": "access_denied", "example": uris[0]}
            assert (verdict["exit_code"], verdict["num_done"]) == (3, 2)
        assert "deferred: 8 (mostly access_denied" in runs.run([*night, "--dry-run"])
        server.refused = set()
        assert verdict_of(runs.run([*night, "--retry-failed"]))["num_scored"] == 8
        assert "holds every listed object (10)" in runs.run(night)
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "_verdicts").iterdir())]
    assert sorted(verdict["exit_code"] for verdict in kept) == [0, 0, 3, 3, 3, 3, 3]


def verdict_of(text: str) -> dict:
    """The last line on standard output (messages on standard error come in between)."""
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def test_rows_of_a_part_that_was_lost_are_scored_again(tmp_path, model):
    uris = runs.make_bucket(tmp_path / "videos", num_videos=9)
    output = tmp_path / "out"
    score(tmp_path / "videos", model, output, rows_per_part=3)
    runs.parts(output)[1].unlink()
    (summary,) = score(tmp_path / "videos", model, output, rows_per_part=3)
    assert (summary["num_already_done"], summary["num_scored"]) == (6, 3)
    runs.assert_each_once(output, uris)
    assert score(tmp_path / "videos", model, output, rows_per_part=3) == [], "no part is missing any more, in effect"


@pytest.mark.parametrize(("precision", "is_own_key"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_rows_of_other_arithmetic_have_another_key_and_say_so(tmp_path, model, precision, is_own_key):
    runs.make_bucket(tmp_path / "videos", num_videos=1)
    score(tmp_path / "videos", model, tmp_path / "out", precision=precision)
    (row,) = runs.read_rows(tmp_path / "out")
    assert row["precision"] == ("fp32" if precision == "auto" else precision)
    key = result_key(row["fingerprint"], ViewConfig.from_dict(json.loads(row["view_config"])))
    assert (row["result_key"] != key) == is_own_key


def test_poisonous_videos_are_tombstones_and_all_others_are_scored(tmp_path, model, runner):
    """A segfault, a hang that holds the GIL, and a memory bomb in one run."""
    videos, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(videos, num_videos=40)
    faults = {3: "segfault", 17: "hang", 29: "memory"}
    for number, fault in faults.items():
        Path(uris[number]).write_bytes(poisoned(Path(uris[number]).read_bytes(), fault))
    limits = Limits(decode_timeout_seconds=10, decode_memory_bytes=512 * 1024**2)
    (summary,) = score(videos, model, output, make_stages=poison_stages, limits=limits, runner=runner)
    rows = runs.assert_each_once(output, uris)
    got = {number: rows[number]["status"] for number in faults}
    assert got == {3: "decoder_crashed", 17: "decode_timeout", 29: "out_of_memory"}
    assert summary["num_scored"] == 37
    assert all(row["status"] == "ok" for number, row in enumerate(rows) if number not in faults)


def test_odd_object_names_are_names_and_nothing_else(tmp_path, model):
    videos, output = tmp_path / "videos", tmp_path / "out"
    good = make_video(num_frames=8)
    names = [b"http:__x.mp4", b"concat:a|b.mp4", b"a\nb.mp4", b"caf\xe9.mp4", b"a b#c?d%20e*[f].mp4", "ü.mp4".encode()]
    (videos / "http:" / "127.0.0.1").mkdir(parents=True)
    (videos / "http:" / "127.0.0.1" / "x.mp4").write_bytes(good)
    for name in names:
        Path(videos, *[name.decode("utf-8", "surrogateescape")]).write_bytes(good)
    (summary,) = score(videos, model, output)
    assert summary["num_listed"] == summary["num_scored"] == len(names) + 1
    rows = runs.read_rows(output)
    assert len({row["uri"] for row in rows}) == len(rows)
    assert score(videos, model, output) == [], "they are recognised the next night"


def test_a_hostile_file_reads_no_other_file_and_fails_as_a_row(tmp_path, model, runner):
    videos, output = tmp_path / "videos", tmp_path / "out"
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(make_video(num_frames=8))
    videos.mkdir()
    (videos / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    (videos / "playlist.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    )
    score(videos, model, output, runner=runner)
    assert all(row["status"] in ("unsupported", "corrupt") for row in runs.read_rows(output))


def test_a_bucket_on_s3_with_the_model_and_the_output_there_too(tmp_path, model, s3_bucket):
    """The command as in the README, in a process of its own, twice: the second has nothing to do."""
    from tests.support.stores import filesystem

    fs, _ = filesystem(s3_bucket)
    name = s3_bucket.removeprefix("s3://")
    data = make_video(num_frames=8)
    keys = [f"videos/{i:02d}.mp4" for i in range(5)] + [
        "videos/a#b?c%20 d.mp4",
        "videos/http:/x.mp4",
        "videos/../up.mp4",
    ]
    for key in keys:
        fs.call_s3("put_object", Bucket=name, Key=key, Body=data)
    fs.call_s3("put_object", Bucket=name, Key="videos/broken.mp4", Body=data[:100])
    for path in model.iterdir():
        fs.call_s3("put_object", Bucket=name, Key=f"models/m/{path.name}", Body=path.read_bytes())
    flags = (*runs.TINY_VIEWS, "--max-failure-rate", "0.5")
    arguments = runs.command(
        source=f"{s3_bucket}/videos/", model=f"{s3_bucket}/models/m", output=f"{s3_bucket}/scores/", flags=flags
    )
    text = runs.run(arguments)
    assert "scored                 8" in text
    assert "done before 8, 1 (mostly corrupt, such as" in runs.run(arguments)
    fs.invalidate_cache()
    part = next(path for path in fs.find(f"{name}/scores/predictions") if path.endswith(".parquet"))
    rows = pq.read_table(fs.open(part), partitioning=None).to_pylist()
    assert sorted(row["uri"] for row in rows) == sorted(f"{s3_bucket}/{key}" for key in [*keys, "videos/broken.mp4"])
    assert {row["status"] for row in rows} == {"ok", "corrupt"}
    assert any(path.endswith("/_SUCCESS") for path in fs.find(f"{name}/scores/_runs"))


def test_a_bucket_on_azure(tmp_path, model, azure_container):
    from tests.support.stores import filesystem

    fs, _ = filesystem(azure_container)
    name = azure_container.removeprefix("az://")
    fs.pipe_file(f"{name}/videos/a.mp4", make_video(num_frames=8))
    for path in model.iterdir():
        fs.pipe_file(f"{name}/model/{path.name}", path.read_bytes())
    arguments = runs.command(
        source=f"{azure_container}/videos", model=f"{azure_container}/model", output=f"{azure_container}/scores"
    )
    assert "scored                 1" in runs.run(arguments)
    assert "nothing new" in runs.run(arguments)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, model):
    videos, output = tmp_path / "videos", tmp_path / "out"
    runs.make_bucket(videos, num_videos=4)
    places = {"source": (str(videos),), "model": str(model), "output": str(output)}
    config = ScoreConfig(**places, views="1x1", span="full", runner="local")
    text = ScoreJob(config).dry_run()
    assert "would score 4 videos" in text
    assert not output.exists()
    ScoreJob(config).run()
    runs.make_bucket(videos / "more", num_videos=3)
    text = ScoreJob(config).dry_run()
    assert "already done 4, would score 3 videos" in text
    assert "videos/s of the run of" in text


def test_a_limit_tries_the_same_few_videos_each_time_and_leaves_nights_alone(tmp_path, model):
    videos, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(videos, num_videos=12)
    (first,) = score(videos, model, output, limit=5)
    tried = {row["uri"] for row in runs.read_rows(output)}
    assert (first["num_listed"], first["num_scored"], len(tried)) == (5, 5, 5)
    assert tried != set(uris[:5]), "not just the first by name"
    assert score(videos, model, output, limit=5) == [], "the same ones"
    assert json.loads(newest_verdict(output))["limit"] == 5
    (night,) = score(videos, model, output)
    assert (night["num_listed"], night["num_already_done"], night["num_scored"]) == (12, 5, 7)
    assert json.loads(newest_verdict(output))["limit"] is None
    runs.assert_each_once(output, uris)


@pytest.mark.long
def test_a_limit_does_not_get_between_a_night_and_its_end(tmp_path, model, monkeypatch):
    """Videos of an unfinished run would be scored twice."""
    videos, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(videos, num_videos=12)
    with monkeypatch.context() as patch:
        patch.setattr(ScoreJob, "_execute", _cut_off)
        with pytest.raises(RunError, match="cut off"):
            score(videos, model, output, limit=4)
    tried, night = score(videos, model, output)
    assert (tried["num_planned"], night["num_planned"]) == (4, 8)
    uris += runs.make_bucket(videos / "more", num_videos=2)
    with monkeypatch.context() as patch:
        patch.setattr(ScoreJob, "_execute", _cut_off)
        with pytest.raises(RunError, match="cut off"):
            score(videos, model, output)
    with pytest.raises(UsageError, match=r"--limit 4: run .* of all videos is unfinished"):
        score(videos, model, output, limit=4)
    score(videos, model, output)
    runs.assert_each_once(output, uris)


def _cut_off(*_: object) -> None:
    raise RunError("cut off")


def newest_verdict(output: Path) -> str:
    return max((output / "_verdicts").iterdir(), key=lambda path: path.stat().st_mtime_ns).read_text()


def test_files_that_a_folder_leaves_are_told_by_extension_and_can_be_taken(tmp_path, model):
    videos, output = tmp_path / "videos", tmp_path / "out"
    uris = runs.make_bucket(videos, num_videos=3)
    for name in ("a.bin", "b.BIN", "notes.txt"):
        (videos / name).write_bytes((videos / "0000.mp4").read_bytes())
    (videos / ".DS_Store").touch()
    arguments = runs.command(source=videos, model=model, output=output)
    expected = "3 other files left: 2 .bin, 1 .txt; --extensions takes more"
    assert expected in runs.run([*arguments, "--dry-run"])
    assert expected in runs.run(arguments)
    assert expected in runs.run(arguments), "also with nothing to score"
    assert "1 other file left: 1 .txt;" in runs.run([*arguments, "--extensions", ".bin"])
    runs.assert_each_once(output, [*uris, str(videos / "a.bin"), str(videos / "b.BIN")])


def test_a_run_id_is_resumed_only_with_the_configuration_that_it_was_started_with(tmp_path, model):
    videos, output = tmp_path / "videos", tmp_path / "out"
    runs.make_bucket(videos, num_videos=2)
    score(videos, model, output, run_id="monday")
    assert score(videos, model, output, run_id="monday") == [], "finished"
    with pytest.raises(UsageError, match="other model, views or embeddings"):
        score(videos, model, output, run_id="monday", views="2x1")
    with pytest.raises(UsageError, match="other sources"):
        score(tmp_path / "out", model, output, run_id="monday")


def test_several_sources_and_a_manifest_are_scored_once_each(tmp_path, model):
    uris = runs.make_bucket(tmp_path / "a", num_videos=3)
    runs.make_bucket(tmp_path / "b", num_videos=1)
    gone = tmp_path / "gone.mp4"
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri\n" + "\n".join([uris[0], str(gone)]) + "\n")
    (summary,) = score((str(tmp_path / "a"), str(tmp_path / "b" / "*.mp4"), str(manifest)), model, tmp_path / "out")
    rows = runs.assert_each_once(tmp_path / "out", [*uris, str(tmp_path / "b" / "0000.mp4"), str(gone)])
    assert {row["uri"]: row["status"] for row in rows}[str(gone)] == "not_found"
    assert summary["num_failed"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--views", "5x2"], "--views: got '5x2'"),
        (["--max-failure-rate", "2"], "--max-failure-rate: got 2.0"),
        (["--nonsense"], "--nonsense"),
        (["--predictors", "0"], "--predictors: got '0'"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--max-pixels", "-1"], "max_pixels must be positive"),
        (["--stride", "two"], "--stride"),
        (["--extensions", "asf"], "--extensions: got 'asf', allowed is like .asf"),
    ],
)
def test_a_usage_error_says_what_was_got_and_exits_with_2(tmp_path, model, flags, message):
    arguments = runs.command(source=tmp_path, model=model, output=tmp_path / "out", flags=flags)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_source_model_or_output_says_so_and_exits_with_2(tmp_path, model):
    runs.make_bucket(tmp_path / "videos", num_videos=1)
    blocked = tmp_path / "file"
    blocked.touch()
    places = {"source": tmp_path / "videos", "model": model, "output": tmp_path / "out"}
    for name, value in (("source", tmp_path / "nowhere"), ("model", tmp_path / "nowhere"), ("output", blocked / "x")):
        text = runs.run(runs.command(**{**places, name: value}), code=2)
        assert str(value) in text, text
        assert "Traceback" not in text


def test_weights_that_do_not_fit_are_named_without_rays_pages_and_nothing_is_scored_at_random(tmp_path):
    model = make_videomae(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    runs.make_bucket(tmp_path / "videos", num_videos=1)
    text = runs.run(runs.command(source=tmp_path / "videos", model=model, output=tmp_path / "out"), code=2)
    assert "parameters without a tensor in the file: classifier.bias" in text
    assert "Traceback" not in text
    assert "(raylet)" not in text
    assert runs.parts(tmp_path / "out") == []


def test_flags_win_over_the_config_file_and_both_are_one_definition(tmp_path, model):
    runs.make_bucket(tmp_path / "videos", num_videos=2)
    nightly = tmp_path / "nightly.yaml"
    nightly.write_text(f"source: [{tmp_path / 'videos'}]\nmodel: {model}\nviews: 9x3\nspan: full\ndry_run: true\n")
    arguments = runs.command(source="x", model="x", output=tmp_path / "out")[:2]
    arguments += ["--config", str(nightly), "--views", "1x1", "--output", str(tmp_path / "out")]
    assert "would score 2 videos" in runs.run(arguments)
    nightly.write_text("vews: 5x3\n")
    assert "--vews" in runs.run(arguments, code=2)


def test_a_resumed_run_also_scores_what_came_since(tmp_path, model, runner):
    videos, output = tmp_path / "videos", tmp_path / "out"
    runs.make_bucket(videos, num_videos=4)
    score(videos, model, output, runner=runner)
    marker = runs.markers(output)[0]
    for name in ("_SUCCESS", "summary.json", "keys.parquet"):
        marker.with_name(name).unlink()
    (videos / "new.mp4").write_bytes(make_video(num_frames=8))
    resumed, fresh = score(videos, model, output, runner=runner)
    assert (resumed["resumed"], resumed["num_scored"]) == (True, 4)
    assert (fresh["resumed"], fresh["num_scored"], fresh["num_already_done"]) == (False, 1, 4)
    shutil.rmtree(output)
