"""Every command of README and docs runs as it stands, or says why it is not run and is one that the parser takes.

A block of commands is marked ``sh``. Those that need a bucket, a cluster or minutes have a comment on the line before:
``<!-- not run: WHY -->``. All others run in the order of their page, in a folder with a few of the demo's videos, where
what would be downloaded from the Hub is a folder of the same name.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import vidray
from tests.support import runs
from vidray.cli import demo
from vidray.cli.completion import configs_of_commands
from vidray.cli.main import parse
from vidray.errors import EXIT_CODES
from vidray.flags import known_flags
from vidray.monitoring import SERIES
from vidray.types import Status

PAGES = ["README.md", *sorted(str(path.relative_to(runs.ROOT)) for path in (runs.ROOT / "docs").glob("*.md"))]
MODEL = "MCG-NJU/videomae-base-finetuned-kinetics"
LONG = ("docs/embeddings.md", "docs/long-videos.md", "docs/output.md", "docs/training.md")
"""Pages whose commands run with ``make test-all`` alone."""
READS_SCORES = ("docs/output.md",)
"""Pages that begin with an output which is there."""
TOOLS = ("vidray", "ray", "make", "pip", "python", "python3", "kubectl")
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    why_not_run: str | None


def blocks(page: str) -> list[Block]:
    text = (runs.ROOT / page).read_text()
    return [
        Block(language=found["language"], text=found["text"], why_not_run=found["why"])
        for found in _FENCE.finditer(text)
    ]


def shell_blocks(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "sh"]


def to_run(page: str) -> list[str]:
    return [block.text for block in shell_blocks(page) if block.why_not_run is None]


def commands() -> list[tuple[str, str]]:
    """Each command line of vidray in the blocks of all pages, with its page."""
    found = []
    for page in PAGES:
        for block in shell_blocks(page):
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [(page, line.strip()) for line in lines if "vidray " in line or "jobs/" in line]
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """What a reader is assumed to have."""
    folder = tmp_path_factory.mktemp("reader")
    demo.make_bucket(folder / "videos", num_videos=6, seed=1_000_000)
    (folder / "videos/broken.mp4").unlink()
    (folder / "videos/left-0000.mp4").rename(folder / "videos/a.mp4")
    demo.make_labelled_bucket(folder / "train", num_videos=24)
    demo.make_untrained_checkpoint(folder / MODEL)
    return folder


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.long if page in LONG else ()) for page in PAGES if to_run(page)]
)
def test_the_commands_of_a_page_run_in_order(page, workspace, tmp_path):
    here = shutil.copytree(workspace, tmp_path / "here")
    if page in READS_SCORES:
        vidray.score(here / "videos", here / MODEL, here / "scores", quiet=True)
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment = runs.clean_environment(PYTHONPATH=str(runs.ROOT), PATH=path, HF_HUB_OFFLINE="1")
    for text in to_run(page):
        shell = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(shell, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one_that_the_parser_takes(page, line):
    words = shlex.split(line.replace("…", "SOMETHING").partition(" < ")[0].replace("$(", " "), comments=True)
    for at, word in enumerate(words):
        if word == "vidray":
            name, *flags = words[at + 1 :]
        elif word.startswith("jobs/"):
            name, flags = Path(word).stem, words[at + 1 :]
        else:
            continue
        flags = list(itertools.takewhile(lambda flag: flag != "|", flags))
        if "--config" in flags:  # the files themselves are tried in test_cluster_files.py
            place = flags.index("--config")
            flags = [*flags[:place], *flags[place + 2 :], "--source", "S", "--model", "M", "--output", "O"]
        if name != "--version":
            assert parse(configs_of_commands()[name], flags, prog=f"vidray {name}") is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_is_marked_as_one(page):
    """Else it would be run by nobody."""
    starts = tuple(f"{tool} " for tool in TOOLS)
    lines = [line for block in blocks(page) if not block.language for line in block.text.splitlines()]
    assert not [line for line in lines if line.startswith(starts)]


@pytest.mark.parametrize("page", [*PAGES, "cluster/README.md"])
def test_links_lead_to_pages_and_headings_that_are_there(page):
    text = (runs.ROOT / page).read_text()
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
        path = (runs.ROOT / page).parent / target if target else runs.ROOT / page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, heading


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/benchmarks.md"])  # names flags of benchmarks
def test_flags_in_the_text_of_a_page_exist(page):
    known = {flag for config in configs_of_commands().values() if config for flag in known_flags(config)}
    named = re.findall(r"(?<![\w-])--[a-z][a-z-]+", (runs.ROOT / page).read_text())
    assert set(named) <= known | {"--version", "--working-dir", "--help", "--address", "--no-frames", "--no-profile"}


def test_the_runbook_has_a_section_for_each_status_and_exit_code():
    text = (runs.ROOT / "docs/operate.md").read_text()
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    sections = {name for heading in headings for name in re.split(r", | and ", heading)}
    assert {status.value for status in Status} - {"ok"} <= sections
    assert {str(code) for code in EXIT_CODES} <= sections


def test_the_runbook_lists_the_series_that_there_are():
    text = (runs.ROOT / "docs/operate.md").read_text()
    assert re.findall(r"^\| `(ray_vidray_\w+)` ", text, re.MULTILINE) == [series.exposed_name for series in SERIES]


def test_some_blocks_run_and_some_do_not():
    found = [block for page in PAGES for block in shell_blocks(page)]
    assert sum(block.why_not_run is None for block in found) >= 12
    assert sum(block.why_not_run is not None for block in found) >= 8
    assert (len(commands()), len(PAGES)) >= (30, 15)


def test_the_readme_is_short():
    assert len((runs.ROOT / "README.md").read_text().splitlines()) <= 200
