"""A GPU gives what the CPU gives, and is never waited for in between. The same tests run on the CPU, which tells that
they themselves are right; ``make gpu-check`` runs them where there is a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.checkpoints import VARIANTS, make_family
from tests.support.training_parts import make_config, make_loop
from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vidray.scoring.predictor import Predictor
from vidray.training.loop.ranks import Ranks

FAMILIES = ("videomae", "timesformer", "vivit", "vjepa2", "videoprism_vision_model", "movinet_a0_base")
OF_PYTORCHVIDEO = ("slow_r50", "x3d_m", "slowfast_r50", "r2plus1d_r50", "csn_r101", "mvit_base_16x4")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    if request.param == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def make_checkpoint(folder: Path, name: str) -> Checkpoint:
    family, changes = VARIANTS[name]
    return read_checkpoint(str(make_family(folder / name, family, labels=("a", "b", "c"), **changes)))


def make_videos(checkpoint: Checkpoint, *, num_videos: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shape = (1, *checkpoint.view.views_shape[1:])
    return [random.integers(0, 256, shape, dtype=np.uint8) // (1 + number % 3) for number in range(num_videos)]


def num_waits(device: str, work: Callable[[], object]) -> int:
    """How often ``work`` waits for the GPU, as PyTorch itself counts it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        work()
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*FAMILIES, *OF_PYTORCHVIDEO])
def test_each_family_scores_as_on_the_cpu(tmp_path, device, name, precision):
    if name in OF_PYTORCHVIDEO:
        pytest.importorskip("pytorchvideo")
    checkpoint = make_checkpoint(tmp_path, name)
    videos = make_videos(checkpoint, num_videos=7)
    expected = Predictor(checkpoint, device="cpu", top_k=3).predict(videos)
    found = Predictor(checkpoint, device=device, precision=precision, batch_size=3, top_k=3).predict(videos)
    for scores, right in zip(found, expected, strict=True):
        assert scores.error is None
        assert dict(scores.top_k) == pytest.approx(dict(right.top_k), abs=1e-4 if precision == "fp32" else 0.05)


def test_more_batches_are_not_more_waits_in_scoring(tmp_path, device):
    checkpoint = make_checkpoint(tmp_path, "videomae")
    videos = make_videos(checkpoint, num_videos=40)
    predictor = Predictor(checkpoint, device=device, batch_size=2)
    predictor.predict(videos[:4])  # what is made once
    few = num_waits(device, lambda: predictor.predict(videos[:4]))
    assert num_waits(device, lambda: predictor.predict(videos)) <= few


@pytest.mark.gpu
@NO_GPU
def test_a_compiled_network_scores_uneven_batches_as_the_eager_one(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "videomae")
    videos = make_videos(checkpoint, num_videos=7)
    eager = Predictor(checkpoint, device="cuda", precision="fp32", batch_size=3, top_k=3).predict(videos)
    compiled = Predictor(checkpoint, device="cuda", precision="fp32", batch_size=3, top_k=3, compile=True)
    for scores, right in zip(compiled.predict(videos), eager, strict=True):
        assert dict(scores.top_k) == pytest.approx(dict(right.top_k), abs=1e-4)


def losses(folder: Path, device: str) -> list[float]:
    config = make_config(folder, global_batch_size=4, epochs=2, log_every_steps=1, precision="fp32")
    loop = make_loop(config, ranks=Ranks(device=torch.device(device)))
    loop.run()
    return [row["loss"] for row in loop.metrics_rows if row["kind"] == "train"]


def test_training_has_the_losses_of_the_cpu(tmp_path, device):
    assert losses(tmp_path, device) == pytest.approx(losses(tmp_path, "cpu"), rel=1e-3)


def test_more_steps_are_not_more_waits_in_training(tmp_path, device):
    counts = []
    for num_videos in (8, 32):
        config = make_config(tmp_path, global_batch_size=4, epochs=1, log_every_steps=1000, save_every_steps=1000)
        loop = make_loop(config, ranks=Ranks(device=torch.device(device)), num_videos=num_videos)
        counts.append(num_waits(device, loop.run))
    assert counts[1] <= counts[0]
