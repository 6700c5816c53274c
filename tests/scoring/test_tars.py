"""A run over tar files: each video in them ends as one row, once, whatever is wrong with the files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scoring.test_secrets import assert_no_secret
from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.range_server import RangeServer
from tests.support.videos import make_video, noisy_video
from vidray.cli.main import main as cli
from vidray.errors import RunError, UsageError
from vidray.results.forget import ForgetConfig, forget
from vidray.results.show import ShowConfig, look_at
from vidray.results.verify import VerifyConfig, verify
from vidray.scoring.config import ScoreConfig
from vidray.scoring.history import run_file
from vidray.scoring.job import ScoreJob
from vidray.scoring.output import ROW
from vidray.scoring.plan import load_plan
from vidray.scoring.plan_rows import PLAN_SCHEMA
from vidray.scoring.stages import DecodeStage
from vidray.sources.manifest import list_sources
from vidray.storage.ranges import PAGE_BYTES
from vidray.storage.store import Store
from vidray.types import Limits, ViewConfig

VIEW = ViewConfig(num_frames=4, size=32, num_clips=1, stride=1)


def write_tar(path: Path, videos: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in videos.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def job(source: str, model: Path, output: Path, **more: object) -> ScoreJob:
    values = {"views": "1x1", "stride": 1, "max_failure_rate": 1.0, "device": "cpu", "runner": "local", **more}
    return ScoreJob(ScoreConfig(source=(source,), model=str(model), output=str(output), **values))  # type: ignore[arg-type]


def score(source: str, model: Path, output: Path, **more: object) -> tuple[dict, list[dict]]:
    (summary,) = job(source, model, output, **more).run()
    return summary, runs.read_rows(output)


@runs.ON_RAY_LONG
def test_members_of_tars_are_scored_once_and_damage_has_rows(tmp_path: Path, runner: str, capfd) -> None:
    model, tars = make_videomae(tmp_path / "model"), tmp_path / "tars"
    video, other = make_video(num_frames=8), make_video(num_frames=9)
    write_tar(tars / "0.tar", {"b.mp4": video, "a.mp4": other, "bad.mp4": b"no video"})
    write_tar(tars / "1.tar", {"c.mp4": video, "d.mp4": video})
    (tars / "1.tar").write_bytes((tars / "1.tar").read_bytes()[: 1024 + len(video) + 1024])
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "b.mp4").write_bytes(video)
    source = f"{tars}/{{0..2}}.tar"
    summary, rows = score(source, model, tmp_path / "out", runner=runner)
    assert {row["uri"].removeprefix(f"{tars}/"): row["status"] for row in rows} == {
        "0.tar#a.mp4": "ok",
        "0.tar#b.mp4": "ok",
        "0.tar#bad.mp4": "unsupported",
        "1.tar": "corrupt",
        "1.tar#c.mp4": "ok",
        "1.tar#d.mp4": "corrupt",
        "2.tar": "not_found",
    }
    assert summary["num_listed"] == len(rows) == 7
    assert "listed 7, 5 of them in 2 tar files" in "".join(capfd.readouterr())
    _, (plain,) = score(str(tmp_path / "plain"), model, tmp_path / "plain-out", runner=runner)
    of_member = next(row for row in rows if row["uri"].endswith("#b.mp4"))
    for name in ("label", "size_bytes", "bytes_fetched", "duration_seconds"):
        assert of_member[name] == plain[name]
    assert of_member["score"] == pytest.approx(plain["score"])
    write_tar(tars / "2.tar", {"e.mp4": video})
    summary, _ = score(source, model, tmp_path / "out", runner=runner)
    assert summary["num_already_done"] == 3
    again = runs.read_rows(tmp_path / "out")[len(rows) :]
    assert [row["uri"].removeprefix(f"{tars}/") for row in again] == ["2.tar#e.mp4"]


def test_one_member_is_shown_reported_and_forgotten(tmp_path: Path, capsys) -> None:
    model, tars, output = make_videomae(tmp_path / "model"), tmp_path / "tars", tmp_path / "out"
    write_tar(tars / "0.tar", {"a#.mp4": make_video(num_frames=8), "./b.mp4": make_video(num_frames=12)})
    score(str(tars), model, output)
    uri = f"{tars}/0.tar#./b.mp4"
    shown = look_at(ShowConfig(video=uri, output=str(output)))
    assert not shown.problem
    assert shown.clips[0].times[-1] == pytest.approx(11 / 30, abs=0.1)
    assert cli(["report", "--output", str(output), "--to", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "no frames" not in page
    assert page.count("data:image/jpeg") >= 12
    done = forget(ForgetConfig(output=str(output), uri=(uri,)))
    assert (done.num_rows, done.missing) == (1, [])
    assert [row["uri"] for row in runs.read_rows(output)] == [f"{tars}/0.tar#a#.mp4"]
    assert not verify(VerifyConfig(output=str(output))).problems


def test_a_member_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.mp4": b"1"})
    with pytest.raises(UsageError, match=r"allowed is a video that is there"):
        look_at(ShowConfig(video=f"{tmp_path}/0.tar#b.mp4"))
    (tmp_path / "0.tar").write_bytes(b"no tar")
    with pytest.raises(RunError, match=r"0.tar#a.mp4 is corrupt: damaged tar file"):
        look_at(ShowConfig(video=f"{tmp_path}/0.tar#a.mp4"))


def test_a_run_of_signed_tars_is_resumed_with_new_signatures_and_keeps_none(tmp_path: Path, monkeypatch) -> None:
    model, output = make_videomae(tmp_path / "model"), tmp_path / "out"
    write_tar(tmp_path / "0.tar", {"a.mp4": make_video(num_frames=8), "b.mp4": make_video(num_frames=8)})
    data = (tmp_path / "0.tar").read_bytes()
    with RangeServer({"0.tar?token=5ec2e7old": data}) as server:
        with monkeypatch.context() as patch:
            patch.setattr(ScoreJob, "_execute", _breaks)
            with pytest.raises(RunError, match="cut off"):
                job(f"{server.url}/0.tar?token=5ec2e7old", model, output).run()
        assert_no_secret(output)
        server.objects = {"0.tar?token=5ec2e7new": data}
        summary, rows = score(f"{server.url}/0.tar?token=5ec2e7new", model, output)
    assert summary["resumed"]
    assert [(row["uri"], row["status"]) for row in rows] == [(f"{server.url}/0.tar#{n}.mp4", "ok") for n in "ab"]
    assert_no_secret(output)


def _breaks(*_: object) -> None:
    raise RunError("cut off")


def test_a_plan_of_before_there_were_members_of_tars_loads(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"video")
    model, output = make_videomae(tmp_path / "model"), tmp_path / "out"
    monkeypatch.setattr(ScoreJob, "_execute", _breaks)
    with pytest.raises(RunError, match="cut off"):
        job(str(tmp_path / "videos"), model, output, run_id="r").run()
    path = output / run_file("r", "plan.parquet")
    table = pq.read_table(path).drop_columns(["tar_member"])
    pq.write_table(table, path)
    plan = load_plan(Store(str(output)), "r")
    assert plan.rows.schema.names == PLAN_SCHEMA.names
    assert [row["tar_member"] for table in plan.rows.tables() for row in table.to_pylist()] == [None]


def decode(table: pa.Table, *, above_bytes: int | None = None) -> list[dict]:
    """The rows that decoding makes of a listing, in the order of the tar files."""
    table = table.take(pa.array(sorted(range(table.num_rows), key=lambda n: table["tar_member"][n]["offset"].as_py())))
    table = table.append_column(ROW, pa.array(range(table.num_rows))).append_column(
        "attempts", pa.array([1] * table.num_rows)
    )
    stage = DecodeStage(view=VIEW, limits=Limits(), range_reads_above_bytes=above_bytes)
    try:
        return stage(table).drop_columns(["views"]).to_pylist()
    finally:
        stage._sandbox.close()


def test_of_a_large_member_only_those_parts_are_fetched_that_its_views_need(tmp_path: Path) -> None:
    large = noisy_video(num_frames=400, width=192, height=144)
    write_tar(tmp_path / "0.tar", {"small.mp4": make_video(), "large.mp4": large, "end.mp4": make_video()})
    with RangeServer({"0.tar": (tmp_path / "0.tar").read_bytes()}) as server:
        listed = list_sources([f"{server.url}/0.tar"])
        parts, whole = decode(listed, above_bytes=PAGE_BYTES), decode(listed)
    assert [row["status"] for row in parts + whole] == ["ok"] * 6
    assert parts[1]["bytes_fetched"] < len(large) / 2
    own = ("decode_seconds", "fetch_seconds", "bytes_fetched", "decoder")
    assert [{k: v for k, v in row.items() if k not in own} for row in parts] == [
        {k: v for k, v in row.items() if k not in own} for row in whole
    ]
