"""The benchmark of scale, at a scale that takes a few seconds."""

from __future__ import annotations

import pytest

from benchmarks import scale

RUNNERS = ["local", pytest.param("ray", marks=pytest.mark.long)]


@pytest.mark.parametrize("runner", RUNNERS)
def test_memory_is_measured_of_the_driver_and_of_both_kinds_of_workers(runner, capsys):
    scale.main(["memory", "--runner", runner, "--sizes", "5"])
    rows = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert float(rows["videos"]) == 5
    assert all(float(rows[name]) > 10 for name in ("driver", "decode worker", "predict worker"))


@pytest.mark.parametrize("runner", RUNNERS)
def test_planning_is_measured_up_to_the_first_rows(runner, capsys):
    scale.main(["plan", "--runner", runner, "--num-objects", "50"])
    rows = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(rows["videos planned"]) == 50
    assert float(rows["rows in the first block"]) > 0
    steps = ["reading the checkpoint", "listing, anti-join, writing the plan", "to the first rows"]
    assert all(float(rows[f"{step}, s"]) >= 0 for step in steps)
    peaks = [float(rows[f"{step}, peak MiB so far"]) for step in steps]
    assert 0 < peaks[0] <= peaks[1] <= peaks[2]
