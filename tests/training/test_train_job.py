"""From labelled videos to a checkpoint that scoring agrees with, in one process; and every way that must be refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.hub_server import hub_server
from vidray.cli.main import main as cli
from vidray.errors import UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.sources.labels import LabelledManifest
from vidray.training.config import EvaluateConfig, TrainConfig
from vidray.training.job import evaluate, train

LABELS = ("left", "right")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Shapes that move left or right: no single frame tells which."""
    return runs.make_classes(tmp_path_factory.mktemp("videos"), num_videos=300, num_frames=12)


def config(videos: Path, model: Path, output: Path, **values: Any) -> TrainConfig:
    chosen = {
        "flip": False,
        "epochs": 24,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "weight_decay": 0.05,
        "global_batch_size": 16,
        "span": "full",
        "views": "2x1",
        "max_scale": 256 / 224,
        "validation_share": 0.2,
    }
    return TrainConfig(source=(str(videos),), model=str(model), output=str(output), **chosen | values)


def make_model(folder: Path, **values: Any) -> Path:
    sizes = {"hidden_size": 96, "num_layers": 3, "initializer_range": 0.02}
    return make_videomae(folder, **sizes | values)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(videos, model, tmp_path_factory) -> TrainConfig:
    """A finished run."""
    finished = config(videos, model, tmp_path_factory.mktemp("trained") / "out")
    train(finished, log=lambda text: None)
    return finished


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Twelve videos, for runs that need not learn."""
    return runs.make_classes(tmp_path_factory.mktemp("few"), num_videos=12)


def small(few: Path, model: Path, output: Path, **values: Any) -> TrainConfig:
    return config(few, model, output, **{"epochs": 2, "global_batch_size": 4, "views": "1x1"} | values)


def facts(output: Path | str) -> dict[str, Any]:
    return json.loads((Path(output) / "vidray.json").read_text())


def test_motion_is_learnt(trained):
    assert facts(trained.output)["metrics"]["accuracy"] >= 0.9


@pytest.mark.long
def test_a_model_of_single_frames_does_not_learn_it(videos, tmp_path):
    """Else the task above could be solved without seeing motion."""
    model = make_model(tmp_path / "model", num_frames=1, tubelet_size=1)
    figures = train(config(videos, model, tmp_path / "out", epochs=8), log=lambda text: None)
    assert figures["accuracy"] <= 0.8


def test_scoring_the_validation_videos_gives_the_trainers_accuracy_to_the_last_video(trained, tmp_path):
    manifest = LabelledManifest.from_parquet((Path(trained.output) / "split.parquet").read_bytes())
    rows = manifest.rows_of("val").to_pylist()
    listing = tmp_path / "val.csv"
    with listing.open("w", newline="") as file:
        csv.writer(file).writerows([["uri"], *([row["uri"]] for row in rows)])
    ScoreJob(ScoreConfig(source=(str(listing),), model=trained.output, output=str(tmp_path / "scores"))).run()
    found = duckdb.sql(f"""
        SELECT count(*), avg((label = split_part(uri, '/', -2))::INT), min(num_views), max(num_views)
        FROM '{tmp_path}/scores/predictions/*/*.parquet' WHERE status = 'ok'""").fetchall()
    metrics = facts(trained.output)["metrics"]
    assert found == [(metrics["num_videos"], metrics["accuracy"], 2, 2)]


def test_evaluate_gives_the_same_figures_and_writes_what_it_saw(trained, videos, tmp_path):
    manifest = LabelledManifest.from_parquet((Path(trained.output) / "split.parquet").read_bytes())
    listing = tmp_path / "val.csv"
    with listing.open("w", newline="") as file:
        rows = [[row["uri"], row["label"]] for row in manifest.rows_of("val").to_pylist()]
        csv.writer(file).writerows([["uri", "label"], *rows])
    output = tmp_path / "evaluated"
    figures = evaluate(
        EvaluateConfig(source=(str(listing),), model=trained.output, output=str(output)), log=lambda text: None
    )
    metrics = facts(trained.output)["metrics"]
    for name in ("accuracy", "view_accuracy", "num_videos", "per_class"):
        assert figures[name] == metrics[name], name
    for name in ("nll", "ece"):
        assert figures[name] == pytest.approx(metrics[name], rel=1e-4), name
    table = pq.read_table(output / "evaluation.parquet").to_pylist()
    assert sum(row["label"] == row["predicted"] for row in table) == round(metrics["accuracy"] * len(table))
    assert "Worst mistakes" in (output / "report/index.html").read_text()


def test_transformers_pipeline_loads_the_folder_and_says_what_scoring_says(trained, videos):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchcodec")
    try:
        classify = transformers.pipeline("video-classification", model=trained.output)
        video = videos / "left" / "000.mp4"
        said = classify(str(video), top_k=2)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not run here: {error}")
    assert {entry["label"] for entry in said} == set(LABELS)
    assert said[0]["label"] == "left"


def test_the_published_folder_says_all_about_the_run(trained):
    output = Path(trained.output)
    found = facts(output)
    assert found["view"]["num_clips"] == 2
    assert found["labels"] == list(LABELS)
    assert found["training"]["recipe"] == "guide"
    assert found["training"]["split"]["num_videos"] == {"train": 240, "val": 60, "test": 0}
    assert found["training"]["versions"]["torch"] == torch.__version__.split("+")[0]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == list(range(24))
    assert lines[-1]["kind"] == "final"
    assert lines[-1]["accuracy"] == found["metrics"]["accuracy"]
    assert (output / "report/index.html").read_text().count("<svg") == 4, "two of learning, two of certainty"
    assert json.loads((output / "report/facts.json").read_text())["labels"] == list(LABELS)
    assert list((output / "tb").glob("events.*"))
    assert "| accuracy |" in (output / "README.md").read_text()
    assert pq.read_table(output / "bad_videos.parquet").num_rows == 0


def test_a_finished_output_says_so_and_does_nothing(trained):
    before = {path: path.stat().st_mtime_ns for path in Path(trained.output).rglob("*")}
    said: list[str] = []
    assert train(trained, log=said.append) == facts(trained.output)["metrics"]
    assert "is finished already" in said[-2]
    assert said[-1] == f"next: vidray score --source VIDEOS --model {trained.output} --output SCORES"
    assert {path: path.stat().st_mtime_ns for path in Path(trained.output).rglob("*")} == before


def test_a_finished_run_is_uploaded_to_the_hub_without_its_states(trained, tmp_path):
    with hub_server() as hub:
        env = runs.clean_environment(HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_any", HF_HUB_OFFLINE="0")
        text = runs.run(pushing(trained, tmp_path), env=env, cwd=runs.ROOT)
    assert "uploaded to somebody/model on the Hugging Face Hub" in text
    (request,) = hub.created
    assert (request["organization"], request["name"]) == ("somebody", "model")
    assert request.get("private") or request.get("visibility") == "private"
    output = Path(trained.output)
    published = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    published = {name: path for name, path in published.items() if not name.startswith("_")}
    assert {"model.safetensors", "config.json", "vidray.json", "README.md"} <= set(published)
    assert hub.files == {name: path.read_bytes() for name, path in published.items()}


def pushing(trained: TrainConfig, folder: Path) -> list[str]:
    """The command of a finished run, with --push-to-hub."""
    plain = {name: value for name, value in dataclasses.asdict(trained).items() if value not in (None, ())}
    del plain["limits"]
    (folder / "same.yaml").write_text(json.dumps(plain | {"push_to_hub": "somebody/model"}))
    return [sys.executable, "jobs/train.py", "--config", str(folder / "same.yaml")]


def test_a_hub_that_cannot_be_reached_leaves_the_finished_run_whole_and_is_asked_again(trained, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in Path(trained.output).rglob("*")}
    with socket.socket() as nobody:  # bound, but nobody listens
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        env = runs.clean_environment(HF_ENDPOINT=endpoint, HF_TOKEN="hf_none", HF_HUB_OFFLINE="0")
        text = runs.run(pushing(trained, tmp_path), code=1, env=env, cwd=runs.ROOT)
    assert "is finished, but --push-to-hub somebody/model failed" in text
    assert "the same command tries again" in text
    assert "Traceback" not in text
    assert {path: path.stat().st_mtime_ns for path in Path(trained.output).rglob("*")} == before


def test_an_output_of_other_settings_is_refused_and_the_difference_named(trained):
    with pytest.raises(UsageError, match=r"learning_rate: 0.001 there, 0.5 now"):
        train(dataclasses.replace(trained, learning_rate=0.5))


def test_more_epochs_for_a_finished_run_are_refused_with_the_way_to_do_it(trained):
    further = re.escape(f"take another --output, and to train this model further --model {trained.output}")
    with pytest.raises(UsageError, match=f"epochs: .* {further}"):
        train(dataclasses.replace(trained, epochs=100))


def test_labels_with_odd_names_survive(few, model, tmp_path):
    names = {"left": "links, „schnell“ / 左", "right": "a b\tc"}
    listing = tmp_path / "all.csv"
    with listing.open("w", newline="") as file:
        rows = [[str(path), names[path.parent.name]] for path in sorted(few.glob("*/*.mp4"))]
        csv.writer(file).writerows([["uri", "label"], *rows])
    said: list[str] = []
    train(small(listing, model, tmp_path / "out", epochs=1), log=said.append)
    assert facts(tmp_path / "out")["labels"] == sorted(names.values())
    published = json.loads((tmp_path / "out/config.json").read_text())
    assert set(published["label2id"]) == set(names.values())


def test_the_head_begins_anew_for_other_labels_and_is_kept_for_the_same(few, model, trained, tmp_path):
    again = small(few, Path(trained.output), tmp_path / "again", epochs=1, learning_rate=1e-9)
    assert train(again, log=lambda text: None)["num_videos"] > 0
    before, after = (_weights(Path(folder))["classifier.weight"] for folder in (trained.output, tmp_path / "again"))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_command_trains_on_an_s3_store_and_evaluates(few, model, s3_bucket, tmp_path, capsys):
    from tests.support.stores import filesystem

    fs, root = filesystem(s3_bucket)
    fs.put(str(few) + "/", f"{root}/videos/", recursive=True)
    arguments = ["--source", f"{s3_bucket}/videos", "--output", f"{s3_bucket}/out", "--model", str(model)]
    flags = ["--epochs", "1", "--views", "1x1", "--span", "full", "--no-flip", "--ema-decay", "0.9"]
    assert cli(["train", *arguments, *flags]) == 0
    assert "is finished: accuracy" in capsys.readouterr().out
    assert cli(["evaluate", "--source", f"{s3_bucket}/videos", "--model", f"{s3_bucket}/out"]) == 0
    assert "num_videos: 12" in capsys.readouterr().out
    assert cli(["train", *arguments, *flags, "--epochs", "3"]) == 2


def test_tar_files_train_and_evaluate_as_the_folders_that_they_were_made_of(few, model, tmp_path, capsys):
    import io
    import tarfile

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(few.rglob("*.mp4")):
            tar.add(path, path.name)
            info = tarfile.TarInfo(f"{path.stem}.cls")
            info.size = len(path.parent.name)
            tar.addfile(info, io.BytesIO(path.parent.name.encode()))
    finished = small(tmp_path / "{0..0}.tar", model, tmp_path / "out", epochs=1)
    train(finished, log=lambda text: None)
    assert facts(tmp_path / "out")["labels"] == list(LABELS)
    assert not pq.read_table(tmp_path / "out" / "bad_videos.parquet").num_rows
    figures = []
    for source in (tmp_path / "0.tar", few):
        assert cli(["evaluate", "--source", str(source), "--model", str(tmp_path / "out")]) == 0
        figures.append(
            [line for line in capsys.readouterr().out.splitlines() if line.startswith(("num_videos", "nll"))]
        )
    assert figures[0] == figures[1]
    assert figures[0][0] == "num_videos: 12"


def test_flags_win_over_the_recipe():
    base = {"source": ("a",), "model": "m", "output": "o"}
    guide, paper = TrainConfig(**base).hyper, TrainConfig(**base, recipe="videomae", global_batch_size=64).hyper
    assert (guide.learning_rate, guide.warmup_share, guide.epochs, guide.mixup) == (5e-5, 0.1, 4, 0)
    assert paper.learning_rate == pytest.approx(5e-4 * 64 / 256)
    assert (paper.warmup_share, paper.mixup, paper.layer_decay) == (0.1, 0.8, 0.75)
    assert TrainConfig(**base, recipe="videomae", mixup=0.0, learning_rate=1.0).hyper.mixup == 0


def test_relative_places_are_the_same_to_workers_that_run_elsewhere(few, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, target in (("videos", few), ("base", model)):
        (tmp_path / name).symlink_to(target)
    train(small(Path("videos"), Path("base"), Path("out"), epochs=1), log=lambda text: None)
    settings = json.loads((tmp_path / "out" / "_train" / "settings.json").read_text())
    assert settings["source"] == [str(tmp_path / "videos")]
    assert settings["model"] == str(tmp_path / "base")
