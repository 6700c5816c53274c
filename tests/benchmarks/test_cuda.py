"""The benchmarks for GPUs run through where there is none, with a small network on the CPU."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cuda, train_cuda
from benchmarks.workload import make_labelled_bucket

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"sizes": {"num_frames": 8, "size": 32}, "device": "cpu", "precision": "fp32"}


def test_scoring_on_a_gpu_is_measured_against_the_slower_of_network_and_decoder(tmp_path, monkeypatch, capsys, clips):
    monkeypatch.setattr(cuda, "MEASURE_SECONDS", 0.1)
    rates = cuda.measure_cuda(
        tmp_path, sorted(clips.iterdir()), num_videos=4, run_job=lambda model: len(list(model.iterdir())), **TINY
    )
    assert rates.keys() == {"network", "decode", "job"}
    assert min(rates.values()) > 0
    ratio = rates["job"] / min(rates["network"], rates["decode"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"= {ratio:.2f} of the smaller")


def test_training_on_a_gpu_is_measured_with_and_without_checkpointing(tmp_path, monkeypatch, capsys, clips):
    monkeypatch.setattr(cuda, "MEASURE_SECONDS", 0.1)
    videos = make_labelled_bucket(tmp_path / "videos", sorted(clips.iterdir()), num_videos=48)
    rows = train_cuda.measure_cuda(tmp_path, videos, batch_sizes=(2, 4), num_steps=24, **TINY)
    assert [(row["batch_size"], row["checkpointing"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    for row in rows:
        assert row["resident_seconds"] > 0
        assert row["job_seconds"] > 0
        assert 0 <= row["data_wait"] < 1
    assert rows[2]["flops"] == 2 * rows[0]["flops"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_the_check_of_a_gpu_calls_benchmarks_with_flags_that_they_have():
    lines = re.findall(
        r'^"\$PYTHON" benchmarks/(\w+)\.py (.*)', (ROOT / "scripts/gpu_check.sh").read_text(), re.MULTILINE
    )
    assert len(lines) == 3
    for name, flags in lines:
        assert importlib.import_module(f"benchmarks.{name}").parse(shlex.split(flags)).device == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_check_of_a_gpu_says_at_once_that_there_is_none():
    command = ["sh", str(ROOT / "scripts/gpu_check.sh")]
    found = subprocess.run(
        command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 1
    assert found.stderr.startswith("gpu-check: PyTorch sees no GPU here")
    assert found.stdout == ""
