"""A cluster in one machine: a driver's node without CPUs, two with CPUs, one with a GPU (a fake one: a resource)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae

SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

root, videos, model, output, report = sys.argv[1:]
sys.path.insert(0, root)
from tests.support.node_stages import node_stages
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob

cluster = Cluster()
cluster.add_node(num_cpus=0, include_dashboard=False)
cluster.add_node(num_cpus=2)
second = cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=0, num_gpus=1)
ray.init(cluster.address, log_to_driver=False)
cluster.wait_for_nodes()

def remove_second_node():
    while len(list(Path(output).glob("predictions/run=*/part-*"))) < 2:
        time.sleep(0.01)
    cluster.remove_node(second, allow_graceful=False)
    Path(report + ".removed").write_text(str(len(list(Path(output).glob("predictions/run=*/part-*")))))

if {remove}:
    threading.Thread(target=remove_second_node, daemon=True).start()
config = ScoreConfig(
    source=(videos,), model=model, output=output, views="1x1", span="full", rows_per_part=8, decoders="2",
)
job = ScoreJob(config, make_stages=node_stages(report))
(summary,) = job.run()
Path(report).write_text(json.dumps({{
    "gpu_nodes": [n["NodeID"] for n in ray.nodes() if n["Resources"].get("GPU")],
    "outcome": summary["outcome"],
}}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.parametrize(
    "remove",
    [
        pytest.param(False, id="all nodes stay", marks=pytest.mark.long),
        pytest.param(True, id="a CPU node is removed mid-run"),
    ],
)
def test_decoding_runs_on_cpu_nodes_prediction_on_the_gpu_node_and_the_run_ends_complete(tmp_path, remove):
    model = make_videomae(tmp_path / "model")
    uris = runs.make_bucket(tmp_path / "videos", num_videos=320, num_frames=150)
    output, report = tmp_path / "out", tmp_path / "report.json"
    script = tmp_path / "driver.py"
    script.write_text(SCRIPT.format(remove=remove))
    places = [str(path) for path in (runs.ROOT, tmp_path / "videos", model, output, report)]
    runs.run([sys.executable, str(script), *places], cwd=runs.ROOT)
    rows = runs.assert_each_once(output, uris)
    assert {row["status"] for row in rows} == {"ok"}
    assert len(runs.markers(output)) == 1
    if remove:
        num_parts_then = int(Path(f"{report}.removed").read_text())
        assert num_parts_then < 30, "the node was removed too late to matter"
    (gpu_node,) = json.loads(report.read_text())["gpu_nodes"]
    where = {stage: nodes_of(report, stage) for stage in ("decode", "predict")}
    assert where["predict"] == {gpu_node}
    assert gpu_node not in where["decode"]
    assert len(where["decode"]) == 2


def nodes_of(report: Path, stage: str) -> set[str]:
    return {path.name.split("-")[-1] for path in report.parent.glob(f"{report.name}.{stage}-*")}
