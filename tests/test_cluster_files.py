"""The cluster files hold commands that the parser accepts."""

from __future__ import annotations

import re
import shlex
import typing
from pathlib import Path

import pytest
import yaml

from vidray.cli.completion import configs_of_commands
from vidray.cli.main import parse
from vidray.results.nightly import NightlyConfig
from vidray.scoring.config import ScoreConfig

ROOT = Path(__file__).resolve().parent.parent


def test_the_kuberay_job_runs_a_command_that_the_parser_accepts():
    job = yaml.safe_load((ROOT / "cluster" / "kuberay-score.yaml").read_text())
    program, script, *flags = shlex.split(job["spec"]["entrypoint"])
    assert program == "python"
    assert (ROOT / script).is_file()
    config = parse(ScoreConfig, flags, prog="vidray score")
    groups = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.predictors == f"{groups['predict']['minReplicas']}:{groups['predict']['maxReplicas']}"
    assert config.decoders is not None


def test_the_ray_cluster_has_its_head_among_its_node_types():
    cluster = yaml.safe_load((ROOT / "cluster" / "ray-aws.yaml").read_text())
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/design.md", "docs/operate.md", "docs/output.md", "docs/preprocessing.md", "docs/training.md"],
)
def test_links_and_flags_in_the_docs_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    configs = configs_of_commands().values()
    fields = [*(name for config in configs if config for name in fields_of(config)), *limit_names()]
    flags = {name.replace("_", "-") for name in fields}
    others = {"working-dir", "help", "address", "no-frames", "no-profile"}
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text):
        assert flag in flags | others, f"--{flag}"


def fields_of(config) -> list[str]:
    return list(getattr(typing.get_origin(config) or config, "__dataclass_fields__", ()))


def limit_names() -> list[str]:
    from vidray.types import Limits

    return list(Limits.__dataclass_fields__)


def test_the_config_file_of_the_runbook_is_accepted(tmp_path, monkeypatch):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/operate.md").read_text(), re.DOTALL)
    path = tmp_path / "nightly.yaml"
    path.write_text(example)
    monkeypatch.setenv("SLACK_WEBHOOK", "https://hooks.slack.com/services/T/B/X")
    assert parse(NightlyConfig, ["--config", str(path)], prog="vidray nightly").max_drift == 0.2


def test_the_config_file_of_the_readme_is_accepted(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "nightly.yaml"
    path.write_text(example)
    config = parse(ScoreConfig, ["--config", str(path)], prog="vidray score")
    assert len(config.source) == 2
