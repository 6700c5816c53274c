"""Training on a real cluster of several nodes, one of which is lost in the middle of an epoch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import runs
from tests.support.checkpoints import make_videomae

FLAGS = ("--workers", "3", "--epochs", "4", "--global-batch-size", "6", "--save-every-steps", "1", "--views", "1x1")

DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

remove, output, job = sys.argv[1] == "remove", Path(sys.argv[2]), sys.argv[3:]

def num_states():
    return max((int(path.parent.name[5:]) for path in output.glob("_train/state/*/COMMIT.json")), default=0)

def raylets_of_training_workers():
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"TrainWorker" in (folder / "cmdline").read_bytes():
                yield int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass  # it has ended

cluster = Cluster()
cluster.add_node(num_cpus=0, include_dashboard=False)  # where the driver is
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
cluster.wait_for_nodes()
process = subprocess.Popen(job, env={**os.environ, "RAY_ADDRESS": cluster.address})
if remove:
    while num_states() < 5 and process.poll() is None:
        time.sleep(0.01)
    parents = set(raylets_of_training_workers())
    (victim, *_) = [node for node in nodes if node.all_processes["raylet"][0].process.pid in parents]
    cluster.remove_node(victim, allow_graceful=False)
    print("a node was removed after step", num_states(), flush=True)
    cluster.add_node(num_cpus=1)
code = process.wait()
cluster.shutdown()
sys.exit(code)
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> list[str]:
    """The videos and the model, as flags."""
    folder = tmp_path_factory.mktemp("places")
    runs.make_classes(folder / "videos", num_videos=24)
    model = make_videomae(folder / "model", initializer_range=0.02)
    return ["--source", str(folder / "videos"), "--model", str(model), "--span", "full"]


def train(places: list[str], output: Path, *, what: str) -> str:
    job = [sys.executable, str(runs.ROOT / "jobs" / "train.py"), *places, *FLAGS, "--output", str(output)]
    environment = runs.clean_environment(PYTHONPATH=str(runs.ROOT))
    return runs.run([sys.executable, "-c", DRIVER, what, str(output), *job], env=environment)


@pytest.mark.long
def test_a_node_lost_mid_epoch_changes_no_bit_of_the_weights(places, tmp_path):
    """Three workers, on nodes beside a driver whose own node has no CPUs. One batch of an epoch's three is behind."""
    train(places, tmp_path / "undisturbed", what="keep")
    text = train(places, tmp_path / "out", what="remove")
    assert "a node was removed after step" in text
    assert "Traceback" not in text
    mine, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "undisturbed"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in mine.items())
