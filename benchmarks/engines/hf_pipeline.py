"""Transformers' own way: ``pipeline("video-classification")`` over a list of files.

    python benchmarks/engines/hf_pipeline.py --videos FOLDER --model FOLDER --output FOLDER

It decodes with torchcodec, takes frames over the whole video, and refuses a batch size.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from common import parse_job
from transformers import AutoModelForVideoClassification, AutoVideoProcessor, pipeline


def main() -> None:
    """One process; torch uses all cores."""
    job = parse_job(__doc__)
    paths = sorted(str(path) for path in job.videos.iterdir())
    classify = pipeline(
        "video-classification",
        model=AutoModelForVideoClassification.from_pretrained(job.model),
        video_processor=AutoVideoProcessor.from_pretrained(job.model),
    )
    labels = [best[0]["label"] for best in classify(paths, top_k=1)]
    pq.write_table(pa.table({"uri": paths, "label": labels}), job.output / "part-0.parquet")


if __name__ == "__main__":
    main()
