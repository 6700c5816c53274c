"""The benchmark of training: every engine of every case trains for a few tiny steps."""

from __future__ import annotations

import pytest

from benchmarks import train

TINY = "--size=32 --batch-size=2 --num-videos=8 --num-clips=8 --mark-every=1 --repeats=1"


def params() -> list[object]:
    """Every engine of every case. *decode* differs from *model* in the network's size alone."""
    return [
        pytest.param(case, engine, marks=pytest.mark.long if case == "decode" or engine == "ours-ray" else ())
        for case, values in train.CASES.items()
        for engine in values.engines
    ]


@pytest.mark.parametrize(("case", "engine"), params())
def test_an_engine_trains_for_a_few_steps(case, engine, clips, capfd):
    if train.CASES[case].engines[engine].script == "train_guide.py":
        pytest.importorskip("accelerate", reason="Transformers' Trainer needs accelerate")
    train.main(["--videos", str(clips), "--cases", case, "--engines", engine, *TINY.split()])
    line = capfd.readouterr().out.splitlines()[-1].split()
    assert line[0] == engine
    assert float(line[1]) > 0
    phases = {"ingest": set()}.get(case, {"forward_backward"} if engine == "ceiling" else {"data_wait"})
    assert phases <= set(line)


def test_a_steady_state_is_what_lies_between_the_first_mark_and_the_last():
    marks = [{"clips": clips, "seconds": clips / 4, "cpu_seconds": clips / 2} for clips in (8, 16, 24)]
    found = train.steady({"marks": marks, "phases": {"data_wait": 1.0}})
    assert found == train.Steady(clips_per_second=4.0, cpu_ms_per_clip=500.0, phases={"data_wait": 0.25})


def test_one_mark_is_no_steady_state():
    with pytest.raises(ValueError, match="two marks are needed, got 1: raise --num-clips"):
        train.steady({"marks": [{"clips": 8, "seconds": 1.0, "cpu_seconds": 1.0}], "phases": {}})
