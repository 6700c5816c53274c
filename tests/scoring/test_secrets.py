"""Signed URLs score as any other, and what signs them is in no file of the output."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.http_server import FileServer
from vidray.errors import RunError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.storage import redaction

OLD, NEW = "5ec2e7old", "5ec2e7new"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


def job(folder: Path, model: Path, url: str, token: str) -> ScoreJob:
    """Scores three videos through URLs that this token signs, and one that is not there."""
    manifest = folder / "videos.csv"
    names = [*(path.name for path in sorted((folder / "videos").glob("*.mp4"))), "gone.mp4"]
    manifest.write_text("uri\n" + "".join(f"{url.replace('//', '//me:5ec2e7@')}/{n}?token={token}\n" for n in names))
    values = {"views": "1x1", "span": "full", "max_failure_rate": 1.0, "runner": "local"}
    return ScoreJob(ScoreConfig(source=(str(manifest),), model=str(model), output=str(folder / "out"), **values))


def assert_no_secret(output: Path) -> None:
    for path in output.rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            assert "5ec2e7" not in str(table.to_pylist()) + str(table.schema.metadata), path
        elif path.is_file():
            assert b"5ec2e7" not in path.read_bytes(), path


def test_a_run_is_resumed_with_new_signatures_and_keeps_none(tmp_path, model, monkeypatch, capfd) -> None:
    runs.make_bucket(tmp_path / "videos", num_videos=3)
    with FileServer(tmp_path / "videos") as server:
        with monkeypatch.context() as patch:
            patch.setattr(ScoreJob, "_execute", _breaks)
            with pytest.raises(RunError, match="cut off"):
                job(tmp_path, model, server.url, OLD).run()
        assert_no_secret(tmp_path / "out")
        server.refused |= {f"/{n:04d}.mp4{query}" for n in range(3) for query in ("", f"?token={OLD}")}
        (summary,) = job(tmp_path, model, server.url, NEW).run()
        assert (summary["num_scored"], summary["num_failed"]) == (3, 1)
        assert_no_secret(tmp_path / "out")
        assert job(tmp_path, model, server.url, "5ec2e7newest").run() == [], "a new token makes no new object"
    rows = runs.read_rows(tmp_path / "out")
    assert [row["uri"] for row in rows] == [f"{server.url}/{name}" for name in _names()]
    assert "5ec2e7" not in "".join(capfd.readouterr())


def _breaks(*_: object) -> None:
    raise RunError("cut off")


def _names() -> list[str]:
    return [*(f"{number:04d}.mp4" for number in range(3)), "gone.mp4"]


def test_a_parameter_that_is_named_as_secret_is_in_no_row_and_no_message(tmp_path, model, runner, monkeypatch, capfd):
    """Workers are other processes, on other machines perhaps; what they say of a failure goes into the rows."""
    monkeypatch.setattr(redaction, "_extra", frozenset())
    redaction.configure(["key"])
    runs.make_bucket(tmp_path / "videos", num_videos=2)
    manifest = tmp_path / "videos.csv"
    with FileServer(tmp_path / "videos") as server:
        manifest.write_text(
            f"uri,size_bytes,etag\n{server.url}/0000.mp4?key=5ec2e7,,x\n{server.url}/0001.mp4?key=5ec2e7,,x\n"
        )
        server.refused.add("/0001.mp4?key=5ec2e7")
        places = {"source": (str(manifest),), "model": str(model), "output": str(tmp_path / "out")}
        ScoreJob(ScoreConfig(**places, views="1x1", span="full", max_failure_rate=1.0, runner=runner)).run()
    assert_no_secret(tmp_path / "out")
    statuses = {row["uri"]: row["status"] for row in runs.read_rows(tmp_path / "out")}
    assert statuses[f"{server.url}/0001.mp4"] == "access_denied"
    assert "5ec2e7" not in "".join(capfd.readouterr())
