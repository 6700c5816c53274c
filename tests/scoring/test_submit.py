"""Submitted for real: both jobs, on a head with token authentication on loopback, from a clean clone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.results.status import StatusConfig, read_status

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def head(
    folder: Path, environment: dict[str, str], *, port: int, dashboard_port: int, more: Sequence[str] = ()
) -> Iterator[None]:
    """A Ray head that stays in the foreground, so that ending it ends everything that it started.

    Its agent, which starts the jobs, has a port of its own: Ray's default is one for the whole machine, and a head
    whose agent finds it taken refuses all jobs.
    """
    agent_port = free_port()
    flags = ["--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}", *more]
    flags += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    flags += [f"--dashboard-agent-listen-port={agent_port}", f"--temp-dir={folder}", "--disable-usage-stats"]
    log = folder.with_suffix(".log").open("w")
    process = subprocess.Popen([RAY, "start", *flags], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for port in (dashboard_port, agent_port):
            runs.wait_until(lambda port=port: answers(port) or process.poll() is not None, what="the head")
        assert process.poll() is None, folder.with_suffix(".log").read_text()[-3000:]
        yield
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        log.close()


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running head, and a clone of this repository to submit jobs from."""

    clone: Path
    submit: list[str]
    """What a job's command line is put behind."""
    with_token: dict[str, str]
    without: dict[str, str]
    """Environments of who submits."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """One head for all tests here: it takes longer to start than the jobs."""
    folder = tmp_path_factory.mktemp("submit")
    port, token = free_port(), folder / "token"
    token.write_text("0123456789abcdef" * 4)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where the head finds the job's ``python``
    without = runs.clean_environment(RAY_AUTH_MODE="token", PYTHONNOUSERSITE="1", PATH=path)
    with_token = without | {"RAY_AUTH_TOKEN_PATH": str(token)}
    submit = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{port}", "--working-dir", ".", "--"]
    # Unix sockets have short paths; pytest's folders are too deep for Ray's.
    ray_folder = Path(f"/tmp/vidray-test-{os.getpid()}")
    try:
        with head(ray_folder, with_token, port=free_port(), dashboard_port=port):
            yield Cluster(clone=make_clone(folder / "clone"), submit=submit, with_token=with_token, without=without)
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def make_clone(folder: Path) -> Path:
    """What ``git clone`` would bring, and nothing that lies beside it."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=runs.ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, files):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (runs.ROOT / name).is_file():
            shutil.copy(runs.ROOT / name, target)
    return folder


def test_ray_job_submit_scores_a_bucket_with_the_token_and_is_refused_without(cluster, tmp_path):
    model = make_videomae(tmp_path / "model")
    uris = runs.make_bucket(tmp_path / "videos", num_videos=6)
    job = ["python", "jobs/score.py", "--source", str(tmp_path / "videos"), "--model", str(model)]
    refused = submit_and_wait(
        [*cluster.submit, *job, "--output", str(tmp_path / "refused")], cluster.without, cluster.clone
    )
    assert refused.returncode != 0
    assert not (tmp_path / "refused").exists()
    done = submit_and_wait(
        [*cluster.submit, *job, *runs.TINY_VIEWS, "--output", str(tmp_path / "out")], cluster.with_token, cluster.clone
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "scored                 6" in done.stdout
    runs.assert_each_once(tmp_path / "out", uris)
    assert len(runs.markers(tmp_path / "out")) == 1


@pytest.mark.long
def test_ray_job_submit_trains_on_two_workers_of_the_cluster(cluster, tmp_path):
    model = make_videomae(tmp_path / "model", initializer_range=0.02)
    for label in ("left", "right"):
        runs.make_bucket(tmp_path / "videos" / label, num_videos=4)
    places = ["--source", str(tmp_path / "videos"), "--model", str(model), "--output", str(tmp_path / "out")]
    flags = ["--workers", "2", "--global-batch-size", "4", "--epochs", "1", "--views", "1x1", "--span", "full"]
    done = submit_and_wait(
        [*cluster.submit, "python", "jobs/train.py", *places, *flags], cluster.with_token, cluster.clone
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "is finished: accuracy" in done.stdout
    assert "epoch 1/1 step 2: loss" in done.stdout  # six videos train, four at a time
    assert json.loads((tmp_path / "out" / "vidray.json").read_text())["labels"] == ["left", "right"]
    settings = json.loads((tmp_path / "out" / "_train" / "settings.json").read_text())
    assert settings["global_batch_size"] == 4


def test_a_submitted_job_finds_its_code_and_what_lies_beside_it_and_nothing_more(cluster):
    """.rayignore: whatever else the folder of a user holds stays where it is."""
    for name in ("nightly.yaml", "clips.csv", "labels.txt"):
        (cluster.clone / name).write_text("")
    (cluster.clone / ".venv3").mkdir()
    (cluster.clone / ".venv3" / "large.bin").write_text("")
    look = "import os; print('found', sorted(os.listdir('.')), os.path.exists('vidray/cli/main.py'))"
    done = submit_and_wait([*cluster.submit, "python", "-c", look], cluster.with_token, cluster.clone)
    assert done.returncode == 0, done.stdout
    files = ["clips.csv", "constraints.txt", "jobs", "labels.txt", "mkdocs.yml", "nightly.yaml", "vidray"]
    assert f"found {files} True" in done.stdout, done.stdout


def submit_and_wait(arguments: list[str], environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    home = cwd.parent / "home"  # no token file of this machine's user counts
    home.mkdir(exist_ok=True)
    return subprocess.run(
        arguments,
        env=environment | {"HOME": str(home)},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.long
def test_a_submitted_night_outlives_who_followed_it_and_is_resumed_after_it_was_stopped(cluster, tmp_path):
    """``ray job stop`` leaves a driver three seconds, which may be too few for a verdict: `vidray status` tells."""
    model, output = make_videomae(tmp_path / "model"), tmp_path / "out"
    uris = runs.make_bucket(tmp_path / "videos", num_videos=800)
    places = ["--source", str(tmp_path / "videos"), "--model", str(model), "--output", str(output)]
    job = ["python", "jobs/nightly.py", *places, "--views", "5x3", "--rows-per-part", "8", "--no-frames"]
    submit = [*cluster.submit[:-1], "--submission-id", "night", "--"]
    client = runs.start([*submit, *job], env=cluster.with_token, cwd=cluster.clone)
    runs.wait_until(lambda: runs.parts(output) != [], what="a part")
    client.send_signal(signal.SIGINT)
    followed, _ = client.communicate(timeout=60)
    assert "videos in 100 parts" in followed
    num_parts = len(runs.parts(output))
    runs.wait_until(lambda: len(runs.parts(output)) > num_parts, what="a part after its client")
    address = cluster.submit[cluster.submit.index("--address") + 1]
    stop = [RAY, "job", "stop", "--address", address, "night"]
    assert submit_and_wait(stop, cluster.with_token, cluster.clone).returncode == 0
    assert len(runs.parts(output)) < 100, "it was stopped too late to tell"
    assert read_status(StatusConfig(output=str(output))).exit_code in (1, 143)

    done = submit_and_wait([*cluster.submit, *job], cluster.with_token, cluster.clone)
    assert done.returncode == 0, done.stdout[-4000:]
    runs.assert_each_once(output, uris)
    verdicts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"outcome"')]
    assert [(one["exit_code"], one["num_listed"]) for one in verdicts] == [(0, 800)]
    assert Path(verdicts[0]["report"]).exists()
