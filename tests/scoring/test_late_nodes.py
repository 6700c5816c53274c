"""A cluster that is empty when the job starts: its nodes come later."""

from __future__ import annotations

import sys

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae

SCRIPT = """
import os, subprocess, sys, time
from ray.cluster_utils import Cluster

cluster = Cluster()
cluster.add_node(num_cpus=0, include_dashboard=False)
job = subprocess.Popen(sys.argv[1:], env={**os.environ, "RAY_ADDRESS": cluster.address})
time.sleep(5)  # nodes take their time
if job.poll() is None:
    for _ in range(2):
        cluster.add_node(num_cpus=1)
code = job.wait()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.parametrize(("seconds", "code"), [pytest.param("60", 0, marks=pytest.mark.long), ("0", 2)])
def test_an_empty_cluster_is_waited_for_if_so_asked_and_else_refused_at_once(tmp_path, seconds, code):
    model = make_videomae(tmp_path / "model")
    uris = runs.make_bucket(tmp_path / "videos", num_videos=8)
    script = tmp_path / "driver.py"
    script.write_text(SCRIPT)
    flags = (*runs.TINY_VIEWS, "--wait-for-nodes", seconds)
    job = runs.command(source=tmp_path / "videos", model=model, output=tmp_path / "out", flags=flags)
    text = runs.run([sys.executable, str(script), *job], cwd=runs.ROOT, code=code)
    if code == 0:
        rows = runs.assert_each_once(tmp_path / "out", uris)
        assert {row["status"] for row in rows} == {"ok"}
    else:
        assert "--wait-for-nodes SECONDS" in text
        assert "Traceback" not in text
