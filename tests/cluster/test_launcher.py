"""Files for `ray up`: what Ray's own schema takes, with a token, closed dashboards, and pools that grow from zero."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support import runs

FOLDER = runs.ROOT / "cluster/launcher"
CLOUDS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
POOLS = ("decode-spot", "decode-on-demand", "predict-spot", "predict-on-demand")

pytestmark = pytest.mark.parametrize("cloud", CLOUDS)


def config(cloud: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{cloud}.yaml").read_text())


def test_rays_own_schema_takes_it(cloud):
    schema = json.loads(resources.files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    jsonschema.validate(config(cloud), schema)
    assert config(cloud)["provider"]["type"] == cloud


def test_two_pools_grow_from_zero_and_take_spot_nodes_first(cloud):
    types = config(cloud)["available_node_types"]
    assert set(types) == {"head", *POOLS}
    assert config(cloud)["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}, "the driver lives there and nothing else"
    for name in POOLS:
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        assert types[name]["resources"].get("GPU", 0) == (1 if "predict" in name else 0)
        assert types[name].get("docker", {}).get("worker_image", "").endswith(":gpu") == ("predict" in name)
    for pool in ("decode", "predict"):
        spot, on_demand = types[f"{pool}-spot"], types[f"{pool}-on-demand"]
        assert spot["priority"] > on_demand["priority"]
        assert spot["resources"] == on_demand["resources"]
        added = json.dumps(spot["node_config"]).lower()
        assert re.search("spot|preemptible", added)
        assert not re.search("spot|preemptible", json.dumps(on_demand["node_config"]).lower())
    assert 0 < config(cloud)["idle_timeout_minutes"] <= 15


def test_every_node_has_a_disk_of_a_size_and_an_identity(cloud):
    for name, kind in config(cloud)["available_node_types"].items():
        text = json.dumps(kind["node_config"])
        (size,) = re.findall(r'"(?:VolumeSize|diskSizeGb|osDiskSize)": (\d+)', text)
        assert int(size) >= 100
        if cloud == "azure":  # one for all nodes
            assert config(cloud)["provider"]["msi_name"]
        elif (cloud, name) != ("gcp", "head"):  # which Ray gives one of its own, as the file says
            assert re.search("IamInstanceProfile|serviceAccounts", text)
    if cloud == "gcp":
        assert "ray-autoscaler-sa-v1" in (FOLDER / "gcp.yaml").read_text()


def test_clients_need_the_token_and_the_dashboard_answers_on_the_head_alone(cloud):
    found = config(cloud)
    assert "--env RAY_AUTH_MODE=token" in found["docker"]["run_options"]
    assert "--cap-drop=ALL" in found["docker"]["run_options"]
    assert "~/.ray/auth_token" in found["file_mounts"]
    (start,) = (line for line in found["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert all("dashboard" not in line for line in found["worker_start_ray_commands"])


def test_the_packages_that_the_launcher_needs_are_named_for_here_and_installed_on_the_head(cloud):
    needed = {"aws": {"boto3"}, "gcp": {"google-api-python-client"}}
    needed["azure"] = {"azure-common", "azure-identity", "azure-mgmt-compute", "azure-mgmt-network", "azure-core"}
    text = (FOLDER / f"{cloud}.yaml").read_text()
    above = text.partition("cluster_name")[0].replace("\\\n#", "")
    (here,) = re.findall(r"pip install -c constraints.txt (.*)", above)
    (there,) = config(cloud)["head_setup_commands"]
    both = (here.partition(" ")[2], there.partition("constraints.txt ")[2])
    assert set(both[0].split()) == set(both[1].split()) >= needed[cloud]
    assert here.startswith("'ray[default]==2.60.0' ")
