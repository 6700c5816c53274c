"""Fixtures for all tests: stores in processes of their own, and the sample videos."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import servers

# What a shell runs in the background (`make test &`) starts with SIGINT ignored, and hands that on to its children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _impatient() -> None:
    """Tests that expect a store to fail wait for seconds, not for ten minutes."""
    from vidray.storage import retry

    retry.configure(deadline_seconds=3.0)


@pytest.fixture(autouse=True)
def _leaves_ray_as_it_was() -> Iterator[None]:
    """A test whose actors outlive it fails, and not the next one, which would wait for their CPUs for ever."""
    yield
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    deadline = time.monotonic() + 30
    while (left := ray.available_resources().get("CPU", 0)) < ray.cluster_resources().get("CPU", 0):
        if time.monotonic() > deadline:
            pytest.fail(f"left behind in Ray: something that keeps {ray.cluster_resources()['CPU'] - left} CPUs")
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def _no_screen(monkeypatch) -> None:
    """No test prints for a screen of some width unless it says so."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[servers.Server]:
    """An S3 server; its environment variables are set, so that child processes reach it too."""
    with servers.s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        yield server


@pytest.fixture
def s3_bucket(s3_server: servers.Server) -> str:
    """The URI (``s3://name``) of a new, empty bucket."""
    from tests.support.stores import filesystem

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    fs, _ = filesystem(f"s3://{name}")
    fs.call_s3("create_bucket", Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[servers.Server]:
    """A Google Cloud Storage server; skips where gcsfs is not installed (``pip install 'vidray[gcs]'``)."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed; pip install 'vidray[gcs]'")
    import fsspec

    from tests.support.gcs_server import gcs_server

    with gcs_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})  # fsspec has read the environment already
        yield server


@pytest.fixture
def gcs_bucket(gcs_server: servers.Server) -> str:
    """The URI (``gs://name``) of an empty bucket."""
    return f"gs://bucket-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def azure_server() -> Iterator[servers.Server]:
    """An Azure Blob server; skips where Azurite is not installed (``scripts/azurite.sh install``)."""
    program = servers.find_azurite()
    if program is None:
        pytest.skip("Azurite is not installed; scripts/azurite.sh install")
    with servers.azure_server(program) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def azure_container(azure_server: servers.Server) -> str:
    """The URI (``az://name``) of a new, empty container."""
    from tests.support.stores import filesystem

    name = f"container-{uuid.uuid4().hex[:12]}"
    fs, _ = filesystem(f"az://{name}")
    fs.mkdir(name)
    return f"az://{name}"


@pytest.fixture
def memory_folder() -> str:
    """The URI (``memory://name``) of a folder that no other test uses."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def sample_videos() -> Path:
    """The folder of sample videos that VIDRAY_SAMPLE_VIDEOS names; skips without it."""
    folder = os.environ.get("VIDRAY_SAMPLE_VIDEOS")
    if not folder:
        pytest.skip("VIDRAY_SAMPLE_VIDEOS does not name a folder of sample videos")
    return Path(folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: on busy cores two threads that wait for each other make tiny networks 40 times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray on this machine for all tests that run jobs in their own process."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def runner(request: pytest.FixtureRequest) -> str:
    """Each runner in turn, for jobs in the test's own process."""
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    return request.param


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder on the store that the test is parametrised with."""
    match request.param:
        case "local":
            return str(tmp_path / "out")
        case "s3":
            return f"{request.getfixturevalue('s3_bucket')}/out"
        case "gcs":
            return f"{request.getfixturevalue('gcs_bucket')}/out"
        case "azure":
            return f"{request.getfixturevalue('azure_container')}/out"
        case _:
            return f"{request.getfixturevalue('memory_folder')}/out"
