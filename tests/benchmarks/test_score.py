"""The benchmark of score runs: each engine scores a few videos, and the tables say what was measured."""

from __future__ import annotations

import sys

import pytest
from transformers.utils import is_torchcodec_usable

from benchmarks import score

PEERS = {"pipeline": "torchcodec", "ray": "decord", "daft": "daft"}
"""Engines that need a library which only ``pip install -e '.[bench]'`` brings."""
ENGINES = ["ours-local", *(pytest.param(name, marks=pytest.mark.long) for name in ("limit", "ours-ray"))]


@pytest.mark.parametrize("engine", [*ENGINES, *(pytest.param(name, marks=pytest.mark.long) for name in PEERS)])
def test_an_engine_labels_every_video(engine, clips, capfd):
    if engine in PEERS:
        pytest.importorskip(PEERS[engine], reason=f"the engine {engine} needs {PEERS[engine]}")
    if engine == "pipeline" and not is_torchcodec_usable("video"):
        pytest.skip("the engine pipeline needs FFmpeg's shared libraries, for torchcodec")
    score.main(["--videos", str(clips), "--engines", engine, "--sizes", "3", "--repeats", "1", "--settle-seconds", "0"])
    line = capfd.readouterr().out.splitlines()[-1].split()
    assert line[0] == engine
    assert float(line[1]) > 0
    assert (len(line) == 3) == engine.startswith("ours"), "only ours has a _SUCCESS to wait for"


@pytest.mark.parametrize("engine", ["limit-bf16", "ours-local-bf16"])
def test_bf16_is_the_same_command_but_for_the_precision(engine, tmp_path):
    places = {"videos": tmp_path / "videos", "model": tmp_path / "model", "output": tmp_path / "output"}
    fp32, bf16 = (score.ENGINES[name].command(**places) for name in (engine.removesuffix("-bf16"), engine))
    assert [word if word != "fp32" else "bf16" for word in fp32] == bf16
    assert fp32 != bf16


def test_a_run_that_leaves_out_a_video_is_no_measurement(tmp_path, clips):
    script = (
        "import pyarrow as pa, pyarrow.parquet as pq; "
        f"pq.write_table(pa.table({{'uri': ['a', 'b'], 'label': ['x', None]}}), '{tmp_path}/part.parquet')"
    )
    with pytest.raises(SystemExit, match="left 1 labelled videos, wanted 2"):
        score.run_once([sys.executable, "-c", script], tmp_path, num_videos=2)


def test_the_tables_have_marginal_rates_and_their_ratios(capsys):
    """600 videos take 40 s longer than 200 in the limit, which is 10 videos/s; ours takes 50 s longer: 8 videos/s."""
    labels, other = {"a": "x", "b": "y"}, {"a": "x", "b": "x"}
    runs = {
        ("limit", 200): [make_run(25, labels)],
        ("limit", 600): [make_run(65, labels)],
        ("ours-local", 200): [make_run(30, labels, success=28)],
        ("ours-local", 600): [make_run(80, other, success=79)],
    }
    score.report(runs, ["limit", "ours-local"], [200, 600])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["limit", "10.0", "1.00", "x", "0.80", "x", "5.0", "100%"] in lines
    assert ["ours-local", "8.0", "0.80", "x", "1.00", "x", "5.0", "50%"] in lines
    assert ["ours-local", "30.0", "(28.0)", "80.0", "(79.0)"] in lines


def make_run(seconds: float, labels: dict[str, str], *, success: float | None = None) -> score.Run:
    return score.Run(seconds=seconds, success_seconds=success, labels=labels)
