"""Where a process computes, in what arithmetic, and which settings of torch the result depends on."""

from __future__ import annotations

import os

import torch

from vidray.cpu_tuning import keep_freed_memory
from vidray.errors import UsageError
from vidray.training.config import Device, Precision, TrainConfig


def choose_device(asked: Device) -> torch.device:
    """The device of this process. Raises UsageError if there is no GPU but one was asked for."""
    if asked != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if asked == "cuda":
        raise UsageError("--device cuda: there is no GPU here")
    return torch.device("cpu")


def use_bf16(asked: Precision, device: torch.device) -> bool:
    """Whether to compute in bf16; ``auto``: on a GPU that has it, as scoring chooses."""
    if asked == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return asked == "bf16"


def prepare_torch(config: TrainConfig, device: torch.device) -> None:
    """Settings of this process that the result depends on."""
    if device.type == "cpu":
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
