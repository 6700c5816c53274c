"""The limit: Vidray's decode and Vidray's forward with no engine, one process per core, each its share of the files.

    python benchmarks/engines/limit.py --videos FOLDER --model FOLDER --output FOLDER

No listing of versions, no sandbox, no retries, no plan, no resuming: what the two stages cost and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from common import Job, parse_job


def main() -> None:
    """One process per core."""
    job = parse_job(__doc__)
    paths = sorted(job.videos.iterdir())
    num_processes = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    shares = [(job, paths[index::num_processes], index) for index in range(num_processes)]
    with context.Pool(num_processes) as pool:
        pool.starmap(score_share, shares, chunksize=1)


def score_share(job: Job, paths: list[Path], index: int) -> None:
    """Score some files on one core and write them as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vidray.checkpoints.checkpoint import read_checkpoint
    from vidray.scoring.config import ScoreConfig
    from vidray.scoring.predictor import Predictor
    from vidray.types import Limits
    from vidray.video.views import decode_views

    config = ScoreConfig(source=("unused",), model="unused", output="unused", views="1x1", span="full")
    checkpoint = read_checkpoint(str(job.model))
    view, limits = config.effective_view(checkpoint.meta.view), Limits()
    predictor = Predictor(checkpoint, view=view, device="cpu", precision=job.precision, num_threads=1)
    labels: list[str] = []
    for start in range(0, len(paths), predictor.batch_size):
        batch = paths[start : start + predictor.batch_size]
        views = [decode_views(path.read_bytes(), view=view, limits=limits)[0] for path in batch]
        labels += [scores.top_k[0][0] for scores in predictor.predict(views)]
    rows = pa.table({"uri": [str(path) for path in paths], "label": labels})
    pq.write_table(rows, job.output / f"part-{index}.parquet")


if __name__ == "__main__":
    main()
