"""The benchmark for GPUs runs through where there is none: a small network on the CPU takes its way."""

from __future__ import annotations

import benchmarks.cuda
from benchmarks.train_cuda import measure_cuda
from benchmarks.workload import make_labelled_bucket
from tests.support.videos import make_video


def test_the_gpu_benchmark_of_training_takes_its_way_on_a_cpu(tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.setattr(benchmarks.cuda, "_SECONDS", 0.1)
    clips = []
    for number in range(2):
        clips.append(tmp_path / f"clip_{number}.mp4")
        clips[-1].write_bytes(make_video(num_frames=20))
    videos = make_labelled_bucket(tmp_path / "videos", clips, num_videos=48)
    rows = measure_cuda(
        tmp_path, videos, batch_sizes=(2, 4), sizes={"num_frames": 8, "size": 32}, device="cpu", precision="fp32",
        num_steps=24,
    )  # fmt: skip
    assert [(row["batch_size"], row["checkpointing"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    for row in rows:
        assert row["resident_seconds"] > 0
        assert row["job_seconds"] > 0
        assert 0 <= row["data_wait"] < 1
    assert rows[2]["flops"] == 2 * rows[0]["flops"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
