"""The pattern of Ray Data's documentation: read files, decode in tasks, predict in actors, write Parquet.

python benchmarks/engines/ray_data.py --videos FOLDER --model FOLDER --output FOLDER
"""

from __future__ import annotations

import io
from typing import Any

import decord
import numpy as np
import ray
from common import Classifier, parse_job, sample_indices

BATCH_SIZE = 8


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """The frames of one video, (NUM_FRAMES, H, W, 3) uint8."""
    reader = decord.VideoReader(io.BytesIO(row["bytes"]), num_threads=1)
    return {"uri": row["path"], "frames": reader.get_batch(sample_indices(len(reader))).asnumpy()}


class Predict:
    """An actor that holds the model."""

    def __init__(self, model: str) -> None:
        self._classifier = Classifier(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"uri": batch["uri"], "label": self._classifier.labels(list(batch["frames"]))}


def main() -> None:
    """Ray on this machine, one actor. Ray Data moves the decoding into the actor, and gives it one thread."""
    job = parse_job(__doc__)
    ray.init(address="local", include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    (
        ray.data.read_binary_files(str(job.videos), include_paths=True)
        .map(decode)
        .map_batches(Predict, fn_constructor_args=(str(job.model),), batch_size=BATCH_SIZE, concurrency=1)
        .write_parquet(str(job.output))
    )


if __name__ == "__main__":
    main()
