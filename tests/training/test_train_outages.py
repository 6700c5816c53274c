"""A store that goes away while a run trains is waited for; it is never reported as bad videos."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.faulty_server import Outage
from vidray.cli.demo import motion_video
from vidray.storage.store import Store

FLAGS = (
    *("--epochs", "10", "--global-batch-size", "4", "--views", "1x1", "--span", "full", "--no-flip"),
    *("--learning-rate", "1e-3", "--threads", "1", "--decoders", "1"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


def start_training(bucket: str, model: Path, proxy: Outage, *flags: str) -> subprocess.Popen[str]:
    """Trains on a few videos in a bucket; returns when the first state is there."""
    store = Store(f"{bucket}/videos")
    for number in range(12):
        label = ("left", "right")[number % 2]
        store.create(f"{label}/{number:03d}.mp4", motion_video(label, seed=number, num_frames=8))
    places = ["--source", f"{bucket}/videos/", "--model", str(model), "--output", f"{bucket}/out"]
    arguments = [sys.executable, str(runs.ROOT / "jobs" / "train.py"), *places, *FLAGS, *flags]
    process = runs.start(arguments, env=runs.clean_environment(AWS_ENDPOINT_URL=proxy.endpoint))
    output = Store(f"{bucket}/out")
    runs.wait_until(
        lambda: process.poll() is not None or any("COMMIT" in path for path in output.list("_train")),
        what="the first state",
    )
    return process


@pytest.mark.long
@pytest.mark.parametrize("seconds", [30, 90, 300])
def test_s3_is_away_in_the_middle_of_training(s3_server, s3_bucket, model, seconds: int) -> None:
    proxy = Outage(s3_server.endpoint.removeprefix("http://"))
    process = start_training(s3_bucket, model, proxy)
    try:
        proxy.go_away()
        time.sleep(seconds)
        assert process.poll() is None
        proxy.come_back()
        text = runs.finish(process, timeout=200)
    finally:
        process.kill()
        proxy.go_away()
    assert "waiting for s3://" in text
    assert "Traceback" not in text
    facts = json.loads(Store(f"{s3_bucket}/out").read("vidray.json"))
    assert facts["metrics"]["num_failed"] == 0


@pytest.mark.long
def test_an_outage_beyond_the_deadline_is_no_bad_data(s3_server, s3_bucket, model) -> None:
    proxy = Outage(s3_server.endpoint.removeprefix("http://"))
    process = start_training(s3_bucket, model, proxy, "--fetch-deadline-seconds", "1", "--store-deadline-seconds", "30")
    try:
        proxy.go_away()
        text = runs.finish(process, code=1, timeout=150)
    finally:
        process.kill()
        proxy.go_away()
    assert "Traceback" not in text
    assert f"cannot read {s3_bucket}/videos/" in text
    assert "its store is away" in text
