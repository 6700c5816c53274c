"""The cluster files hold commands that the parser accepts."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from vidray.cli.completion import configs_of_commands
from vidray.cli.main import parse
from vidray.results.nightly import NightlyConfig
from vidray.scoring.config import ScoreConfig

ROOT = Path(__file__).resolve().parent.parent


CLUSTER = sorted(path for path in (ROOT / "cluster").rglob("*") if path.suffix in {".yaml", ".json", ".md", ".txt"})
CLUSTER += sorted((ROOT / "cluster").glob("*.Dockerfile"))
README = (ROOT / "cluster/README.md").read_text()


def test_every_placeholder_is_marked_as_one_and_is_in_the_list():
    (table,) = re.findall(r"## What you fill in\n(.*)", README, re.DOTALL)
    listed = re.findall(r"`(<[A-Z-]+>)`", table)
    used = {found for path in CLUSTER for found in re.findall(r"<[A-Z][^>\n]*>", path.read_text())}
    assert used == set(listed)
    assert all(name.startswith("<YOUR-") for name in listed)
    for path in CLUSTER:
        assert not re.search(r"(s3|gs|az)://(?!<YOUR-|CONTAINER)", path.read_text()), path
        assert not re.search(r"\b\d{12}\b|changeme|TODO", path.read_text()), path


def test_versions_are_those_that_are_pinned():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    for path in CLUSTER:
        text = path.read_text()
        named = re.findall(r"(?:rayproject/ray:|rayVersion: \"|ray\[default\]==)([\d.]+)", text)
        assert set(named) <= {pinned["ray"]}, path
        for package, version in re.findall(r"\b([a-z-]+)==([\d.]+)", text):
            assert pinned.get(package, version) == version, path


def test_the_files_that_the_clusters_readme_names_exist():
    assert_links_lead_somewhere("cluster/README.md")
    for name in re.findall(r"(?:-f |file://|from-file=?\s?|ray \w+ (?:--yes )?)(cluster/\S+?)(?=\s|$)", README):
        assert (ROOT / name).is_file() or "$" in name, name
    for name in re.findall(r"^\| `(.*)` \|", README.partition("## Images")[0], re.MULTILINE):
        for one in name.split("`, `"):
            assert (ROOT / "cluster" / one).exists(), one


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/design.md",
        "docs/operate.md",
        "docs/output.md",
        "docs/preprocessing.md",
        "docs/training.md",
    ],
)
def test_links_and_flags_in_the_docs_exist(page):
    text = (ROOT / page).read_text()
    assert_links_lead_somewhere(page)
    configs = configs_of_commands().values()
    fields = [*(name for config in configs if config for name in fields_of(config)), *limit_names()]
    flags = {name.replace("_", "-") for name in fields}
    others = {"working-dir", "help", "address", "no-frames", "no-profile"}
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text):
        assert flag in flags | others, f"--{flag}"


def assert_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


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


def test_the_config_file_of_the_page_on_scoring_is_accepted(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/score.md").read_text(), re.DOTALL)
    path = tmp_path / "nightly.yaml"
    path.write_text(example)
    config = parse(ScoreConfig, ["--config", str(path)], prog="vidray score")
    assert len(config.source) == 2
