"""Ray Train starts the workers, and starts them anew; what they compute is what three plain processes compute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.support import gloo, runs
from tests.support.checkpoints import make_videomae
from vidray.training.config import TrainConfig
from vidray.training.loop.ranks import Ranks
from vidray.training.plan import prepare_output, read_plan
from vidray.training.worker import WorkerContext, run_worker

FLAGS = {
    "workers": 3,
    "threads": 1,
    "decoders": 1,
    "epochs": 3,
    "global_batch_size": 7,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "mixup": 0.8,
    "drop_path": 0.1,
    "ema_decay": 0.9,
    "save_every_steps": 2,
    "span": "full",
    "views": "1x1",
    "validation_share": 0.15,
    "max_failure_rate": 0.2,
}


def make_config(videos: Path, model: Path, output: Path, **values: Any) -> TrainConfig:
    return TrainConfig(source=(str(videos),), model=str(model), output=str(output), **FLAGS | values)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Forty moving shapes; one of those that train is no video."""
    folder = tmp_path_factory.mktemp("videos")
    runs.make_classes(folder, num_videos=40)
    (folder / "left" / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"), initializer_range=0.02)


@pytest.fixture(scope="module")
def undisturbed(videos, model, tmp_path_factory) -> Path:
    """The output of three plain processes over gloo, without Ray and without any death."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    config = make_config(videos, model, output)
    prepare_output(config, log=lambda text: None)
    preload = ["vidray.training.worker", "transformers.models.videomae.modeling_videomae"]
    gloo.finish(gloo.start(3, _work, config, preload=preload), seconds=200)
    return output


def _work(rank: int, config: TrainConfig) -> None:
    context = WorkerContext(ranks=Ranks(rank=rank, world_size=3), log=lambda text: None)
    run_worker(config, context, plan=read_plan(config))


DRIVER = """
import logging, sys
import ray
from vidray.cli.main import main as cli

# More CPUs than this machine has, so that three workers and their decoders fit.
ray.init(address="local", num_cpus=6, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
sys.exit(cli(["train", *sys.argv[1:]]))
"""


def start(config: TrainConfig) -> subprocess.Popen[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    places = [f"--source={config.source[0]}", f"--model={config.model}", f"--output={config.output}"]
    waits = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_raylet_start_wait_time_s": "120"}
    env = runs.clean_environment(PYTHONPATH=str(runs.ROOT), **waits)
    return runs.start([sys.executable, "-c", DRIVER, *places, *flags], env=env)


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training workers that descend from a driver."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def committed(output: Path) -> int:
    """The last step that is saved."""
    return max((int(path.parent.name[5:]) for path in output.glob("_train/state/*/COMMIT.json")), default=0)


def wait_for_step(driver: subprocess.Popen[str], output: Path, step: int) -> None:
    runs.wait_until(lambda: committed(output) >= step or driver.poll() is not None, what=f"step {step}", timeout=240)
    assert driver.poll() is None, driver.communicate()[0][-3000:]


def kill_with_all_it_started(driver: subprocess.Popen[str]) -> None:
    """The driver first, as a machine's death would take it, and then what Ray left of its cluster."""
    family = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            continue
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL


@pytest.mark.long
def test_killed_workers_and_drivers_end_with_the_weights_of_a_run_without_any_death(
    undisturbed, videos, model, tmp_path
):
    """First the driver dies, with all that it started; then, in the next attempt, a worker in the middle of an epoch,
    and Ray Train starts all three anew."""
    config = make_config(videos, model, tmp_path / "out")
    output = Path(config.output)
    first = start(config)
    wait_for_step(first, output, 2)
    kill_with_all_it_started(first)
    reached = committed(output)
    assert 2 <= reached < 15
    second = start(config)
    wait_for_step(second, output, reached + 2)
    victims = workers_of(second)
    assert len(victims) == 3
    os.kill(victims[1].pid, signal.SIGKILL)
    text = runs.finish(second, timeout=300)
    assert text.count("resuming at step") == 2, text
    mine, other = (load_file(folder / "model.safetensors") for folder in (output, undisturbed))
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, other[name]), name
    assert losses(output) == losses(undisturbed)


def losses(output: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["kind"], line.get("loss", line.get("nll"))) for line in lines]
