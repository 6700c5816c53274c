"""Large objects of which only parts are fetched: the rows of a run are those of whole fetches, but for the bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.range_server import RangeServer
from tests.support.stores import ref_of
from tests.support.videos import make_video, noisy_video
from vidray.errors import UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.scoring.output import ROW
from vidray.scoring.plan_rows import PLAN_SCHEMA
from vidray.scoring.stages import DecodeStage
from vidray.storage.ranges import PAGE_BYTES
from vidray.types import Limits, ViewConfig

VIEW = ViewConfig(num_frames=4, size=32, num_clips=2, stride=2)
OWN = ("run_id", "scored_at", "planned_at", "decode_seconds", "bytes_fetched")
"""What two runs of the same videos do not have in common."""


@pytest.fixture(scope="module")
def large() -> bytes:
    """An MP4 of seven pages."""
    return noisy_video(num_frames=400, width=192, height=144)


@pytest.fixture
def server(large: bytes) -> Iterator[RangeServer]:
    with RangeServer({"large.mp4": large, "small.mp4": make_video()}) as server:
        yield server


def decode(server: RangeServer, *names: str, limits: Limits | None = None) -> list[dict]:
    """The rows of some objects of the server, without their views."""
    rows = [
        {ROW: number, "uri": ref.uri, "size_bytes": ref.size_bytes, "etag": ref.etag, "attempts": 1}
        for number, ref in enumerate(ref_of(f"{server.url}/{name}") for name in names)
    ]
    stage = DecodeStage(view=VIEW, limits=limits or Limits(), range_reads_above_bytes=PAGE_BYTES)
    try:
        return stage(pa.Table.from_pylist(rows, PLAN_SCHEMA)).drop_columns(["views"]).to_pylist()
    finally:
        stage._sandbox.close()


def score(source: Path, model: Path, output: Path, **more: object) -> tuple[dict, list[dict]]:
    values = {"views": "2x1", "stride": 1, "max_failure_rate": 1.0, "device": "cpu", **more}
    config = ScoreConfig(source=(str(source),), model=str(model), output=str(output), **values)  # type: ignore[arg-type]
    (summary,) = ScoreJob(config).run()
    return summary, runs.read_rows(output)


@runs.ON_RAY_LONG
def test_rows_are_those_of_whole_fetches(tmp_path: Path, large: bytes, runner: str) -> None:
    videos, model = tmp_path / "videos", make_videomae(tmp_path / "model")
    videos.mkdir()
    (videos / "0-large.mp4").write_bytes(large)
    (videos / "1-other.mkv").write_bytes(make_video(container="matroska", num_frames=60))
    (videos / "2-bad.mp4").write_bytes(os.urandom(2 * PAGE_BYTES))
    (videos / "3-short.mp4").write_bytes(make_video(num_frames=8))
    sizes = [path.stat().st_size for path in sorted(videos.iterdir())]
    of_whole = score(videos, model, tmp_path / "whole", runner=runner)
    of_parts = score(videos, model, tmp_path / "parts", runner=runner, range_reads_above_bytes=0)
    assert [row["bytes_fetched"] for row in of_whole[1]] == sizes
    fetched = [row["bytes_fetched"] for row in of_parts[1]]
    assert fetched[0] < sizes[0] / 2
    assert min(fetched) > 0
    for summary, rows in (of_whole, of_parts):
        assert summary["this_process"]["bytes_fetched"] == sum(row["bytes_fetched"] for row in rows)
    for one, other in zip(of_whole[1], of_parts[1], strict=True):
        assert {k: v for k, v in one.items() if k not in OWN} == {k: v for k, v in other.items() if k not in OWN}
    assert [row["status"] for row in of_parts[1]] == ["ok", "ok", "corrupt", "ok"]


def test_only_objects_above_the_size_are_fetched_in_parts(server: RangeServer, large: bytes) -> None:
    parts: list[int] = []
    server.on_range = lambda start, stop: parts.append(stop - start)
    small, row = decode(server, "small.mp4", "large.mp4")
    assert (small["bytes_fetched"], small["size_bytes"]) == (len(server.objects["small.mp4"]),) * 2
    assert (row["bytes_fetched"], row["size_bytes"]) == (sum(parts), len(large))
    assert 0 < sum(parts) < len(large) / 2
    assert row["fetch_seconds"] > 0


def test_an_object_that_is_replaced_while_it_is_read_has_changed(server: RangeServer) -> None:
    parts: list[int] = []

    def replace(start: int, stop: int) -> None:
        parts.append(start)
        server.etag = '"2"' if len(parts) > 1 else '"1"'

    server.on_range = replace
    (row,) = decode(server, "large.mp4")
    assert (row["status"], row["duration_seconds"]) == ("changed", None)
    assert row["bytes_fetched"] > 0


def test_a_store_that_goes_away_in_the_middle_is_a_failed_fetch_and_the_next_video_is_fine(
    server: RangeServer,
) -> None:
    parts: list[int] = []

    def go_away(start: int, stop: int) -> None:
        parts.append(start)
        if len(parts) > 1:
            raise ConnectionResetError

    server.on_range = go_away
    row, small = decode(server, "large.mp4", "small.mp4", limits=Limits(fetch_deadline_seconds=0.5))
    assert row["status"] == "fetch_failed"
    assert small["status"] == "ok"


def test_a_store_that_is_slow_is_no_videos_time_out(server: RangeServer, large: bytes) -> None:
    with RangeServer({"large.mp4": large}, latency_seconds=0.5) as slow:
        (row,) = decode(slow, "large.mp4", limits=Limits(decode_timeout_seconds=1.0))
    assert row["status"] == "ok"
    assert row["fetch_seconds"] > 1.0 > row["decode_seconds"]


def test_a_size_below_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--range-reads-above-bytes: got -1"):
        ScoreConfig(source=("v",), model="m", output="o", range_reads_above_bytes=-1)
