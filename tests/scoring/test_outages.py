"""A job whose store goes away in the middle ends as if it had not; so does one on Google Cloud Storage."""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_server import Outage
from tests.support.videos import make_video
from vidray.storage.store import Store

NUM_VIDEOS = 48
FLAGS = (*runs.TINY_VIEWS, "--rows-per-part", "4", "--fetch-threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


def upload(bucket: str) -> list[str]:
    """Puts small videos into a bucket; returns their URIs."""
    store, data = Store(f"{bucket}/videos"), make_video(num_frames=10)
    names = [f"{number:04d}.mp4" for number in range(NUM_VIDEOS)]
    for name in names:
        store.create(name, data)
    return [store.uri_for(name) for name in names]


def part_paths(output: Store) -> list[str]:
    return [path for path in output.list("predictions") if path.endswith(".parquet")]


def assert_complete(output: Store, uris: list[str]) -> None:
    tables = [pq.read_table(io.BytesIO(output.read(path)), partitioning=None) for path in part_paths(output)]
    rows = pa.concat_tables(tables)
    assert Counter(rows["uri"].to_pylist()) == Counter(uris)
    assert set(rows["status"].to_pylist()) == {"ok"}
    assert [path for path in output.list("_runs") if path.endswith("/_SUCCESS")]


@pytest.mark.parametrize(
    ("runner", "seconds"),
    [
        ("local", 30),
        pytest.param("local", 90, marks=pytest.mark.long),
        pytest.param("local", 300, marks=pytest.mark.long),
        pytest.param("ray", 60, marks=pytest.mark.long),
    ],
)
def test_s3_is_away_in_the_middle_of_scoring(s3_server, s3_bucket, model, runner: str, seconds: int) -> None:
    uris, output = upload(s3_bucket), Store(f"{s3_bucket}/out")
    proxy = Outage(s3_server.endpoint.removeprefix("http://"))
    arguments = runs.command(
        source=f"{s3_bucket}/videos/", model=model, output=output.uri, flags=(*FLAGS, "--runner", runner)
    )
    process = runs.start(arguments, env=runs.clean_environment(AWS_ENDPOINT_URL=proxy.endpoint))
    try:
        runs.wait_until(lambda: len(part_paths(output)) >= 1, what="the first part")
        proxy.go_away()
        num_parts = len(part_paths(output))
        assert num_parts < NUM_VIDEOS / 4, "the run was over before the outage"
        time.sleep(seconds)
        proxy.come_back()
        text = runs.finish(process, timeout=200)
    finally:
        process.kill()
        proxy.go_away()
    assert "waiting for s3://" in text
    assert "Traceback" not in text
    assert_complete(output, uris)


@pytest.mark.long
def test_an_outage_beyond_the_deadline_is_one_line_and_the_next_command_goes_on(s3_server, s3_bucket, model) -> None:
    uris, output = upload(s3_bucket), Store(f"{s3_bucket}/out")
    proxy = Outage(s3_server.endpoint.removeprefix("http://"))
    flags = (*FLAGS, "--store-deadline-seconds", "2", "--fetch-deadline-seconds", "20")
    arguments = runs.command(source=f"{s3_bucket}/videos/", model=model, output=output.uri, flags=flags)
    process = runs.start(arguments, env=runs.clean_environment(AWS_ENDPOINT_URL=proxy.endpoint))
    try:
        runs.wait_until(lambda: len(part_paths(output)) >= 1, what="the first part")
        proxy.go_away()
        text = runs.finish(process, code=1, timeout=150)
    finally:
        process.kill()
        proxy.go_away()
    assert "Traceback" not in text
    assert "(the store is away)" in text.strip().splitlines()[-2] + text.strip().splitlines()[-1]
    runs.run(runs.command(source=f"{s3_bucket}/videos/", model=model, output=output.uri, flags=FLAGS))
    assert_complete(output, uris)


def test_a_whole_job_on_google_cloud_storage(gcs_bucket, model) -> None:
    uris, output = upload(gcs_bucket), Store(f"{gcs_bucket}/out")
    arguments = runs.command(source=f"{gcs_bucket}/videos/", model=model, output=output.uri, flags=FLAGS)
    runs.run(arguments)
    assert_complete(output, uris)
    assert "nothing new to score" in runs.run(arguments)
