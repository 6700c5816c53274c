"""`--keep-columns` through whole jobs: killed, resumed, verified and read, every row has its own columns."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest

import vidray
from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.cli.main import main as cli
from vidray.scoring.output import PREDICTION_SCHEMA

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


def write_manifest(folder: Path, uris: list[str], *, header: str = "uri,camera,site") -> Path:
    lines = [f"{uri},{number},site {number % 3}" for number, uri in enumerate(uris)]
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *lines]))
    return path


@pytest.mark.long
def test_a_killed_run_ends_with_each_row_once_and_its_own_columns(tmp_path, model, capsys) -> None:
    uris = runs.make_bucket(tmp_path / "videos", num_videos=120)
    output = tmp_path / "out"
    arguments = runs.command(source=write_manifest(tmp_path, uris), model=model, output=output)
    arguments += ["--keep-columns", "camera, site", "--rows-per-part", "10", "--runner", "local"]
    process = runs.start(arguments)
    runs.wait_until(lambda: len(runs.parts(output)) >= 3 or process.poll() is not None, what="the point to kill at")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "manifest.csv").write_text("uri,camera,site\n" + "\n".join(f"{uri},0,other" for uri in uris))
    assert "resuming run" in runs.run(arguments)
    rows = runs.assert_each_once(output, uris)
    assert [(row["camera"], row["site"]) for row in rows] == [(n, f"site {n % 3}") for n in range(120)], "of its plan"
    assert cli(["verify", "--output", str(output)]) == 0
    table = vidray.read(output)
    fields = [*PREDICTION_SCHEMA, pa.field("camera", pa.int64()), pa.field("site", pa.string())]
    assert table.schema.equals(pa.schema(fields))
    assert vidray.read(output, columns=["camera"])["camera"].to_pylist() == list(range(120))


def test_nights_with_and_without_are_read_together_and_lost_rows_have_theirs(tmp_path, model) -> None:
    first = runs.make_bucket(tmp_path / "first", num_videos=2)
    second = runs.make_bucket(tmp_path / "second", num_videos=2)
    (tmp_path / "second/0001.mp4").write_bytes(b"no video")
    output, flags = tmp_path / "out", {"views": "1x1", "runner": "local", "quiet": True, "max_failure_rate": 1}
    vidray.score(tmp_path / "first", model, output, **flags)
    manifest = write_manifest(tmp_path, second)
    vidray.score(manifest, model, output, keep_columns="all", **flags)
    table = vidray.read(output, columns=["uri", "status", "camera"]).to_pylist()
    assert [(row["uri"], row["status"], row["camera"]) for row in table] == [
        (first[0], "ok", None),
        (first[1], "ok", None),
        (second[0], "ok", 0),
        (second[1], "unsupported", 1),
    ]
    assert vidray.score(manifest, model, output, **flags).verdict.num_done == 1, "the columns are no other work"
    with pytest.raises(KeyError, match="no such column"):
        vidray.read(output, columns=["lens"])


def test_what_will_not_do_is_refused_before_anything_is_written(tmp_path, model, capsys) -> None:
    uris = runs.make_bucket(tmp_path / "videos", num_videos=1)
    manifest = write_manifest(tmp_path, uris, header="uri,score,site")
    places = ["--source", str(manifest), "--model", str(model), "--output", str(tmp_path / "out")]
    for names, message in (("score", "got 'score', allowed is names that"), ("site,,", "allowed is names like")):
        assert cli(["score", *places, "--keep-columns", names]) == 2
        assert f"--keep-columns: {message}" in capsys.readouterr().err or names == "site,,"
    assert not list((tmp_path / "out").glob("_runs/*"))
