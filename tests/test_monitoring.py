"""Prometheus finds what the dashboard asks for, in the text that a real Ray exposes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.scoring.test_submit import free_port, head
from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.monitoring import SERIES

DASHBOARD = runs.ROOT / "cluster" / "grafana-dashboard.json"
SCORE_AND_STAY = """
import sys
from vidray.cli.main import parse
from vidray.cluster import connected
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
with connected(None):
    ScoreJob(parse(ScoreConfig, sys.argv[1:], prog="vidray score")).run()
    sys.stdin.read()
"""
"""A job's series go with its process, so this one stays after its last row."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A head, and the environment of who uses it."""

    port: int
    """Where Prometheus would ask."""
    environment: dict[str, str]

    def exposed(self) -> dict[str, float]:
        """The values of our series, by name and by labels of ours: ``ray_vidray_videos_total{status="ok"}``."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10).read().decode()
        found: dict[str, float] = {}
        for name, labels, value in re.findall(r"^(ray_vidray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            ours = ",".join(re.findall(r'(?:status|stage)="\w+"', labels))
            found[f"{name}{{{ours}}}"] = float(value)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    token, metrics_port, gcs_port = tmp_path_factory.mktemp("token") / "token", free_port(), free_port()
    token.write_text("0123456789abcdef" * 4)
    environment = runs.clean_environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_metrics_report_interval_ms="500"
    )
    folder = Path(f"/tmp/vidray-metrics-{os.getpid()}")  # Unix sockets have short paths
    flags = [f"--metrics-export-port={metrics_port}"]
    try:
        with head(folder, environment, port=gcs_port, dashboard_port=free_port(), more=flags):
            yield Cluster(port=metrics_port, environment=environment | {"RAY_ADDRESS": f"127.0.0.1:{gcs_port}"})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_of_scoring_is_counted_video_by_video(cluster, tmp_path):
    model, videos = make_videomae(tmp_path / "model"), tmp_path / "videos"
    uris = runs.make_bucket(videos, num_videos=20)
    (videos / "broken.mp4").write_bytes(b"no video")
    flags = ["--source", str(videos), "--model", str(model), "--output", str(tmp_path / "scores"), *runs.TINY_VIEWS]
    process = runs.start(
        [sys.executable, "-c", SCORE_AND_STAY, *flags], env=cluster.environment, cwd=runs.ROOT, stdin=subprocess.PIPE
    )
    try:
        videos_left = "ray_vidray_videos_left{}"
        runs.wait_until(lambda: process.poll() is not None or cluster.exposed().get(videos_left) == 0, what="the end")
        assert process.poll() is None, process.communicate()[0]
        found = cluster.exposed()
        process.communicate("", timeout=60)
    finally:
        runs.kill_group(process)
    assert found['ray_vidray_videos_total{status="ok"}'] == 20
    assert found['ray_vidray_videos_total{status="unsupported"}'] == 1
    assert found["ray_vidray_object_bytes_total{}"] == 20 * Path(uris[0]).stat().st_size + len(b"no video")
    rows = runs.read_rows(tmp_path / "scores")
    assert found["ray_vidray_rows_sealed_total{}"] == len(rows) == 21
    decoding = sum(row["decode_seconds"] or 0.0 for row in rows)
    assert found['ray_vidray_stage_seconds_total{stage="decode"}'] >= 0.5 * decoding > 0
    assert 0 < found['ray_vidray_busy_share{stage="predict"}'] <= 1
    assert names(found) == {series.exposed_name for series in SERIES if "train" not in series.name}


@pytest.mark.long
def test_training_is_seen_while_it_runs(cluster, tmp_path):
    model = make_videomae(tmp_path / "model", initializer_range=0.02)
    runs.make_classes(tmp_path / "videos", num_videos=8)
    places = ["--source", str(tmp_path / "videos"), "--model", str(model), "--output", str(tmp_path / "out")]
    flags = ["--workers", "2", "--global-batch-size", "2", "--epochs", "500", "--views", "1x1", "--span", "full"]
    command = [sys.executable, "jobs/train.py", *places, *flags, "--log-every-steps", "1"]
    process = runs.start(command, env=cluster.environment, cwd=runs.ROOT)
    steps, left = "ray_vidray_train_steps_total{}", "ray_vidray_train_steps_left{}"
    try:
        runs.wait_until(lambda: process.poll() is not None or cluster.exposed().get(steps, 0) >= 10, what="ten steps")
        assert process.poll() is None, process.communicate()[0][-3000:]
        found = cluster.exposed()
        process.terminate()
        process.communicate(timeout=60)
    finally:
        runs.kill_group(process)
    assert found[steps] + found[left] == pytest.approx(1500, abs=1)  # 500 epochs of six videos, two in a step
    assert 0 <= found["ray_vidray_train_data_wait_seconds_total{}"] < found["ray_vidray_train_seconds_total{}"]
    assert names(found) >= {series.exposed_name for series in SERIES if "train" in series.name}


def names(found: dict[str, float]) -> set[str]:
    return {name.partition("{")[0] for name in found}


def test_the_dashboard_asks_for_all_series_and_for_no_other():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for one in panel["targets"] for name in re.findall(r"ray_\w+", one["expr"])}
    assert asked == {series.exposed_name for series in SERIES}
