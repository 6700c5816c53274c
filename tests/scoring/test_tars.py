"""A run over tar files: each video in them ends as one row, once, whatever is wrong with the files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.videos import make_video
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob


def write_tar(path: Path, videos: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in videos.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def score(source: str, model: Path, output: Path, **more: object) -> tuple[dict, list[dict]]:
    values = {"views": "1x1", "stride": 1, "max_failure_rate": 1.0, "device": "cpu", **more}
    config = ScoreConfig(source=(source,), model=str(model), output=str(output), **values)  # type: ignore[arg-type]
    (summary,) = ScoreJob(config).run()
    return summary, runs.read_rows(output)


@runs.ON_RAY_LONG
def test_members_of_tars_are_scored_once_and_damage_has_rows(tmp_path: Path, runner: str) -> None:
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
