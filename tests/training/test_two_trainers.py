"""Two trainers never write to one output, and training does without what it does not need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import runs
from tests.support.checkpoints import make_videomae

FLAGS = ("--epochs", "6", "--global-batch-size", "4", "--save-every-steps", "1", "--span", "full", "--views", "1x1")

TRAIN = """
import sys
sys.path.insert(0, {root!r})
from vidray.cli.main import main
from vidray.storage.lease import Lease

Lease.__init__.__kwdefaults__["ttl_seconds"] = 3.0  # a minute is long for a test
sys.exit(main(["train", *sys.argv[1:]]))
"""

WITHOUT_MAILBOX = """
import logging, sys, threading, time
from pathlib import Path
sys.path.insert(0, {root!r})
import ray
from vidray.cli.main import main
from vidray.training import trainer

ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
open_mailbox = trainer.open_mailbox

def doomed():
    mailbox = open_mailbox()

    def kill():
        while not list(Path(sys.argv[-1]).glob("_train/state/*/COMMIT.json")):
            time.sleep(0.05)
        ray.kill(mailbox, no_restart=True)
        print("the mailbox is gone", flush=True)

    threading.Thread(target=kill, daemon=True).start()
    return mailbox

trainer.open_mailbox = doomed
sys.exit(main(["train", "--workers", "2", "--decoders", "1", "--threads", "1", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> list[str]:
    """The videos and the model, as flags."""
    folder = tmp_path_factory.mktemp("places")
    runs.make_classes(folder / "videos", num_videos=24)
    model = make_videomae(folder / "model", initializer_range=0.02)
    return ["--source", str(folder / "videos"), "--model", str(model)]


def start(script: str, places: list[str], output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script.format(root=str(runs.ROOT)), *places, *FLAGS, "--output", str(output)]
    return runs.start(command, env=runs.clean_environment(PYTHONPATH=str(runs.ROOT)))


def num_states(output: Path) -> int:
    return max((int(path.parent.name[5:]) for path in output.glob("_train/state/*/COMMIT.json")), default=0)


def test_a_trainer_that_was_paused_for_longer_than_its_lease_writes_nothing_beside_its_successor(places, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    runs.finish(start(TRAIN, places, undisturbed))
    output = tmp_path / "out"
    paused = start(TRAIN, places, output)
    runs.wait_until(lambda: num_states(output) >= 3 or paused.poll() is not None, what="a state")
    os.kill(paused.pid, signal.SIGSTOP)
    try:
        reached = num_states(output)
        successor = start(TRAIN, places, output)
        runs.wait_until(
            lambda: num_states(output) > reached or successor.poll() is not None, what="the successor's first state"
        )
    finally:
        os.kill(paused.pid, signal.SIGCONT)
    text = runs.finish(paused, code=1)
    assert "was taken over" in text
    assert "Traceback" not in text
    runs.finish(successor)
    mine, expected = (load_file(folder / "model.safetensors") for folder in (output, undisturbed))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in mine.items())


@pytest.mark.long
def test_training_goes_on_without_its_mailbox(places, tmp_path):
    text = runs.finish(start(WITHOUT_MAILBOX, places, tmp_path / "out"))
    assert "the mailbox is gone" in text
    assert (tmp_path / "out" / "vidray.json").exists()
