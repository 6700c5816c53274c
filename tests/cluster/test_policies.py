"""The policies let jobs read three prefixes and write one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.exceptions import ClientError

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.servers import Server, s3_server
from tests.support.videos import make_video

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


def client(server: Server, service: str, key: str = "test", secret: str = "test") -> Any:
    names = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
    return botocore.session.Session().create_client(service, endpoint_url=server.endpoint, **names)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch) -> Iterator[tuple[Server, dict[str, str]]]:
    """An S3 server that holds everybody to their policies, and the keys of a user who has ours; a bucket with two
    videos, a model and something else."""
    model = make_videomae(tmp_path / "model")
    objects = {f"models/m/{path.name}": path.read_bytes() for path in model.iterdir()}
    videos = {f"videos/{number}.mp4": make_video(num_frames=8 + number) for number in range(2)}
    objects |= videos | {"other/secret": b"1"}
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", str(len(objects) + 4))  # the calls here
    with s3_server() as server:
        s3, iam = client(server, "s3"), client(server, "iam")
        s3.create_bucket(Bucket="bucket")
        for name, data in objects.items():
            s3.put_object(Bucket="bucket", Key=name, Body=data)
        iam.create_user(UserName="vidray")
        policy = (FOLDER / "aws-storage.json").read_text().replace("<YOUR-BUCKET>", "bucket")
        iam.put_user_policy(UserName="vidray", PolicyName="storage", PolicyDocument=policy)
        made = iam.create_access_key(UserName="vidray")["AccessKey"]
        own = {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}
        yield server, server.env | own


@pytest.mark.long
def test_nights_need_no_more_than_the_policy_of_s3_allows(keys):
    """The second reads what the first left, and takes its lease."""
    _, environment = keys
    night = runs.command(source="s3://bucket/videos", model="s3://bucket/models/m", output="s3://bucket/scores")
    for flags in (["--limit", "1"], []):
        text = runs.run([*night, *flags], env=runs.clean_environment(**environment))
        assert json.loads(text.splitlines()[-1])["num_scored"] == 1
    command = [sys.executable, "-m", "vidray", "verify", "--output", "s3://bucket/scores"]
    assert "2 rows: nothing is wrong" in runs.run(command, env=runs.clean_environment(**environment))


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("get_object", {"Key": "other/secret"}),
        ("put_object", {"Key": "videos/0.mp4", "Body": b""}),
        ("put_object", {"Key": "models/m/config.json", "Body": b""}),
        ("delete_object", {"Key": "videos/0.mp4"}),
    ],
)
def test_the_policy_of_s3_allows_nothing_beyond(keys, call, arguments):
    server, environment = keys
    ours = client(server, "s3", environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    assert ours.get_object(Bucket="bucket", Key="videos/0.mp4")["Body"].read()
    with pytest.raises(ClientError, match="AccessDenied"):
        getattr(ours, call)(Bucket="bucket", **arguments)


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
