"""The policies let jobs read three prefixes and write one."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.support import runs

FOLDER = runs.ROOT / "cluster/policies"


def statements(name: str) -> dict[str, dict[str, Any]]:
    policy = json.loads((FOLDER / f"{name}.json").read_text())
    assert policy["Version"] == "2012-10-17"
    assert all(one["Effect"] == "Allow" for one in policy["Statement"])
    return {one["Sid"]: one for one in policy["Statement"]}


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_s3_is_written_below_one_prefix():
    allowed = {
        (action, resource.removeprefix("arn:aws:s3:::<YOUR-BUCKET>"))
        for one in statements("aws-storage").values()
        for action in as_list(one["Action"])
        for resource in as_list(one["Resource"])
    }
    read = {("s3:GetObject", f"/{prefix}/*") for prefix in ("videos", "models", "scores")}
    assert allowed == read | {("s3:ListBucket", ""), ("s3:PutObject", "/scores/*"), ("s3:DeleteObject", "/scores/*")}


def test_a_head_on_aws_ends_nodes_of_its_own_cluster_and_gives_them_one_role():
    found = statements("aws-head")
    name = yaml.safe_load((runs.ROOT / "cluster/launcher/aws.yaml").read_text())["cluster_name"]
    assert found["EndItsOwnNodes"]["Condition"] == {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": name}}
    assert found["GiveNodesTheirRole"]["Resource"].endswith(":role/vidray")
    anywhere = {action for one in found.values() for action in as_list(one["Action"]) if one["Resource"] == "*"}
    assert {action.partition(":")[0] for action in anywhere} == {"ec2"}


def test_gcs_and_azure_have_the_same_prefixes():
    for action, prefixes in (("read", ["videos", "models"]), ("write", ["scores"])):
        condition = yaml.safe_load((FOLDER / f"gcs-{action}.yaml").read_text())
        assert re.findall(r'"projects/_/buckets/<YOUR-BUCKET>/objects/(\w+)/"', condition["expression"]) == prefixes
        azure = (FOLDER / f"azure-{action}.txt").read_text()
        assert re.findall(r"StringLike '(\w+)/\*'", azure) == prefixes
        assert azure.count("(") == azure.count(")")
    role = json.loads((FOLDER / "azure-role.json").read_text())
    conditional = re.findall(r"ActionMatches\{'([^']+)'\}", azure)
    assert conditional == role["DataActions"], "an action without a condition would be allowed everywhere"
