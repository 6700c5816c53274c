"""Daft: list and download, a class that decodes and predicts on every core, write Parquet.

python benchmarks/engines/daft_udf.py --videos FOLDER --model FOLDER --output FOLDER
"""

from __future__ import annotations

import io
import os

import av
import daft
import numpy as np
from common import Classifier, parse_job, sample_indices
from daft.functions import download

BATCH_SIZE = 8
NUM_PROCESSES = len(os.sched_getaffinity(0))


@daft.cls(max_concurrency=NUM_PROCESSES, use_process=True)
class Score:
    """Holds the model in a process of its own; each has one core."""

    def __init__(self, model: str) -> None:
        self._classifier = Classifier(model, num_threads=1)

    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=BATCH_SIZE)
    def label(self, videos: daft.Series) -> list[str]:
        """The best label of each video, from its bytes."""
        return self._classifier.labels([decode(data) for data in videos.to_pylist()])


def decode(data: bytes) -> np.ndarray:
    """(NUM_FRAMES, H, W, 3) uint8: all frames are decoded, those that are kept converted."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))  # type: ignore[union-attr]
    return np.stack([frames[index].to_ndarray(format="rgb24") for index in sample_indices(len(frames))])


def main() -> None:
    """Daft's native runner."""
    job = parse_job(__doc__)
    score = Score(str(job.model))
    files = daft.from_glob_path(f"{job.videos}/*").select(daft.col("path").alias("uri"))
    scored = files.with_column("label", score.label(download(daft.col("uri"))))  # type: ignore[arg-type]
    scored.write_parquet(str(job.output))


if __name__ == "__main__":
    main()
