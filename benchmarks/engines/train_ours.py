"""``vidray train`` itself, with the guide's recipe: in this process, or through Ray Train with ``--extra ray``.

``python benchmarks/train.py --engines ours ours-ray`` runs it.

The phases are those of the run's own ``metrics.jsonl``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from train_common import Marks, parse_job

from benchmarks.workload import guide_config
from vidray.training.job import train

_PHASES = ("data_wait", "forward_backward", "communication", "optimizer")


def main() -> None:
    """Train to the end; a mark with each line of metrics."""
    job = parse_job(__doc__)
    moments = Marks()

    def log(text: str) -> None:
        if "clips/s" in text:
            moments.add(0)

    with tempfile.TemporaryDirectory(prefix="vidray-benchmark-train-") as output:
        config = guide_config(
            job.videos,
            model=job.model,
            output=Path(output),
            num_clips=job.num_clips,
            batch_size=job.batch_size,
            log_every_steps=job.mark_every,
            device="cpu",
            precision="fp32",
            ray_address="local" if job.extra == "ray" else None,
        )
        train(config, log=log)
        lines = (Path(output) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    for mark, clips in zip(moments.marks, _sums([row["num_clips"] for row in rows]), strict=True):
        mark["clips"] = clips
    for row in rows[1:]:
        moments.add_phases({name: row[f"{name}_seconds"] for name in _PHASES})
    moments.write(job.output)


def _sums(values: list[int]) -> list[int]:
    return [sum(values[: index + 1]) for index in range(len(values))]


if __name__ == "__main__":
    main()
