"""What the engines share: how they are called, the frames that they take, and the rows that they leave."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_FRAMES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One engine's work."""

    videos: Path
    """A folder of videos, all of which are to be scored."""
    model: Path
    """A checkpoint folder that Transformers can load."""
    output: Path
    """Where Parquet goes, with the columns uri and label, one row per video."""
    precision: str


def parse_job(description: str | None) -> Job:
    """The job from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("videos", "model", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    # Engines unpickle their callables in processes of their own, which must find these modules too.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)
    return Job(videos=args.videos, model=args.model, output=args.output, precision=args.precision)


def sample_indices(num_available: int) -> np.ndarray:
    """(NUM_FRAMES,) int64: frames evenly spread over the whole video, the first and the last among them."""
    return np.linspace(0, num_available - 1, NUM_FRAMES).astype(np.int64)


class Classifier:
    """What a user writes around a model of the Hub: its processor, its network, one batch at a time."""

    def __init__(self, model: str, *, num_threads: int | None = None) -> None:
        import torch
        from transformers import AutoModelForVideoClassification, AutoVideoProcessor

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._processor = AutoVideoProcessor.from_pretrained(model)
        self._model = AutoModelForVideoClassification.from_pretrained(model).eval()

    def labels(self, videos: list[np.ndarray]) -> list[str]:
        """The best label of each video, from its (NUM_FRAMES, H, W, 3) uint8 frames."""
        import torch

        channels_first = [torch.from_numpy(frames_THWC).permute(0, 3, 1, 2) for frames_THWC in videos]
        with torch.inference_mode():
            logits = self._model(**self._processor(channels_first, return_tensors="pt")).logits
        return [self._model.config.id2label[index] for index in logits.argmax(-1).tolist()]
