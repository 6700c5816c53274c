"""The cluster files hold commands that the parser accepts."""

from __future__ import annotations

import re
from pathlib import Path

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
    for name in re.findall(r"(?:-f |file://|from-file=?\s?|ray \w+ (?:--yes )?)(cluster/\S+?)(?=\s|$)", README):
        assert (ROOT / name).is_file() or "$" in name, name
    for name in re.findall(r"^\| `(.*)` \|", README.partition("## Images")[0], re.MULTILINE):
        for one in name.split("`, `"):
            assert (ROOT / "cluster" / one).exists(), one


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
