"""The manifests for Kubernetes: fields that KubeRay has, commands that the parser takes, pods that are confined."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support import runs
from vidray.cli.main import parse
from vidray.results.nightly import NightlyConfig
from vidray.training.config import TrainConfig

FOLDER = runs.ROOT / "cluster/kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))
JOBS = ("nightly", "train", "raycronjob")
COMMANDS: dict[str, Any] = {"nightly": NightlyConfig, "train": TrainConfig}

# Of KubeRay 1.6 (ray-operator/apis/ray/v1), what these manifests may use: a misspelt field would be dropped in silence.
FIELDS = {
    "RayCronJob": {"schedule", "suspend", "jobTemplate"},
    "RayJob": {
        *("entrypoint", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("submitterPodTemplate", "submitterConfig", "submissionMode", "suspend", "rayClusterSpec"),
    },
    "RayCluster": {
        *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"),
        "workerGroupSpecs",
    },
    "authOptions": {"mode"},
    "autoscalerOptions": {
        *("idleTimeoutSeconds", "upscalingMode", "resources", "securityContext", "env", "volumeMounts", "version"),
    },
    "headGroupSpec": {"rayStartParams", "template", "serviceType"},
    "workerGroupSpec": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


@functools.cache
def job(name: str) -> dict[str, Any]:
    (found,) = documents(name)
    return found["spec"]["jobTemplate"] if found["kind"] == "RayCronJob" else found["spec"]


def pods(name: str) -> Iterator[dict[str, Any]]:
    """Templates of all pods that a manifest makes."""
    if name not in JOBS:
        yield from (
            one["spec"]["jobTemplate"]["spec"]["template"] for one in documents(name) if "jobTemplate" in str(one)
        )
        return
    cluster = job(name)["rayClusterSpec"]
    yield from (job(name)["submitterPodTemplate"], cluster["headGroupSpec"]["template"])
    yield from (group["template"] for group in cluster["workerGroupSpecs"])


@pytest.mark.parametrize("name", JOBS)
def test_every_field_is_one_of_kuberays(name):
    (found,) = documents(name)
    assert found["apiVersion"] == "ray.io/v1"
    if found["kind"] == "RayCronJob":
        assert set(found["spec"]) <= FIELDS["RayCronJob"]
    cluster = job(name)["rayClusterSpec"]
    assert set(job(name)) <= FIELDS["RayJob"]
    assert set(cluster) <= FIELDS["RayCluster"]
    for part in ("authOptions", "autoscalerOptions", "headGroupSpec"):
        assert set(cluster[part]) <= FIELDS[part]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= FIELDS["workerGroupSpec"]
        assert 0 == group["minReplicas"] == group["replicas"] < group["maxReplicas"]
    for params in (
        cluster["headGroupSpec"]["rayStartParams"],
        *(g["rayStartParams"] for g in cluster["workerGroupSpecs"]),
    ):
        assert all(isinstance(value, str) for value in params.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_part_is_one_of_kubernetes(path):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    version = "1.34"
    for one in documents(path.stem):
        if one["apiVersion"] != "ray.io/v1":
            validate(one, version, strict=True)
    for number, pod in enumerate(pods(path.stem)):
        template = {"metadata": {"name": f"pod-{number}"}, **pod}
        validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "template": template, "metadata": {"name": "x"}},
            version,
            strict=True,
        )


@pytest.mark.parametrize("name", JOBS)
def test_the_command_is_one_that_the_parser_takes_and_only_code_1_starts_it_again(name):
    shell, wrapper, times, pause, program, command, *flags = shlex.split(job(name)["entrypoint"])
    assert (shell, wrapper, program) == ("sh", "/home/ray/vidray/restart.sh", "vidray")
    assert int(times) > 0
    assert int(pause) > 0
    config = parse(COMMANDS[command], flags, prog=f"vidray {command}")
    assert config.limits.require_sandbox, "a profile under which decoders cannot confine themselves must not pass"
    assert config.wait_for_nodes > 0, "at first there is no node, and perhaps no word of the autoscaler's"
    assert job(name)["backoffLimit"] == 0
    if command == "train":
        (group,) = job(name)["rayClusterSpec"]["workerGroupSpecs"]
        assert config.workers <= group["maxReplicas"]


def test_what_is_scheduled_is_the_night_that_can_be_started_by_hand():
    assert job("raycronjob") == job("nightly")
    (cron, *_) = documents("cronjob")
    assert cron["spec"]["schedule"] == documents("raycronjob")[0]["spec"]["schedule"]
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["create", "-f", "/night/nightly.yaml"]
    (mapped,) = re.findall(
        r"create configmap (\S+) --from-file=cluster/kuberay/(\S+)", (FOLDER / "cronjob.yaml").read_text()
    )
    assert mapped == ("vidray-night", "nightly.yaml")
    assert (FOLDER / "nightly.yaml").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_container_is_confined(path):
    """As the namespace's pod security standard `restricted` asks, and more."""
    for pod in pods(path.stem):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert_confined(container["securityContext"])
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            home = next(one["value"] for one in container["env"] if one["name"] == "HOME")
            assert {place for place, volume in mounts.items() if "emptyDir" in volume} == {"/tmp", home}
    if path.stem in JOBS:
        assert_confined(job(path.stem)["rayClusterSpec"]["autoscalerOptions"]["securityContext"])
        assert job(path.stem)["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def assert_confined(context: dict[str, Any]) -> None:
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", JOBS)
def test_the_head_alone_has_a_token_of_kubernetes(name):
    """KubeRay lets the identity of the head make pods, for the autoscaler; decoders see what strangers sent."""
    with_token = [pod for pod in pods(name) if pod["spec"].get("automountServiceAccountToken", True)]
    assert with_token == [job(name)["rayClusterSpec"]["headGroupSpec"]["template"]]


def test_the_network_policy_holds_for_every_pod_of_a_job_and_opens_the_dashboard_to_the_operator_alone():
    (policy,) = (one["spec"] for one in documents("base") if one["kind"] == "NetworkPolicy")
    chosen = policy["podSelector"]["matchLabels"].items()
    for name in JOBS:
        assert all(chosen <= pod["metadata"]["labels"].items() for pod in pods(name))
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    among, operator = policy["ingress"]
    assert among == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [one["port"] for one in operator["ports"]] == [8265]
    assert [list(one) for one in operator["from"]] == [["namespaceSelector"]]


def test_all_of_it_is_in_one_namespace_with_the_identities_that_it_names():
    accounts = set()
    for path in FILES:
        for one in documents(path.stem):
            if one["kind"] == "Namespace":
                namespace = one["metadata"]["name"]
                continue
            assert one["metadata"]["namespace"] == "vidray"
            if one["kind"] == "ServiceAccount":
                accounts.add(one["metadata"]["name"])
    assert namespace == "vidray"
    named = {pod["spec"]["serviceAccountName"] for path in FILES for pod in pods(path.stem)}
    assert named == accounts
