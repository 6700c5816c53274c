"""Help is read once: examples first, flags under headings, nothing wider than the screen."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from vidray.checkpoints.convert import Conversion
from vidray.checkpoints.new import NewConfig
from vidray.cli.demo import DemoConfig
from vidray.cli.help import EXAMPLES, HEADINGS, command_help
from vidray.cli.main import parse
from vidray.cli.preview import PreviewConfig
from vidray.flags import known_flags
from vidray.models.catalogue import ModelsConfig
from vidray.results.compact import CompactConfig
from vidray.results.compare import CompareConfig
from vidray.results.forget import ForgetConfig
from vidray.results.moments import ExportConfig
from vidray.results.nightly import NightlyConfig
from vidray.results.query import QueryConfig
from vidray.results.report import ReportConfig
from vidray.results.show import ShowConfig
from vidray.results.similar import SimilarConfig
from vidray.results.status import StatusConfig
from vidray.results.verify import VerifyConfig
from vidray.scoring.config import ScoreConfig
from vidray.training.config import EvaluateConfig, TrainConfig

COMMANDS = {
    "score": ScoreConfig,
    "nightly": NightlyConfig,
    "verify": VerifyConfig,
    "query": QueryConfig,
    "compact": CompactConfig,
    "forget": ForgetConfig,
    "export": ExportConfig,
    "similar": SimilarConfig,
    "compare": CompareConfig,
    "report": ReportConfig,
    "status": StatusConfig,
    "show": ShowConfig,
    "preview": PreviewConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "new": NewConfig,
    "convert": Conversion,
    "models": ModelsConfig,
    "demo": DemoConfig,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [66, 80, 200])
def test_help_fits_the_screen_and_names_every_flag(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = command_help(command, COMMANDS[command])
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    assert "None" not in text
    positional = {
        "convert": {"--source", "--output", "--variant"},
        "query": {"--sql"},
        "compare": {"--runs"},
        "show": {"--video"},
        "new": {"--family", "--variant", "--folder"},
    }.get(command, set())
    for flag in known_flags(COMMANDS[command]).keys() - positional:
        assert f"  {flag}" in text or f"  --no-{flag[2:]}" in text or flag.startswith("--no-"), flag


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_are_commands_that_parse(command):
    assert len(EXAMPLES[command]) == 2
    for example in EXAMPLES[command]:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("vidray", command)
        if "--config" not in arguments:
            parse(COMMANDS[command], arguments, prog=f"vidray {command}")


def test_headings_are_at_fields_that_there_are():
    configs = {config.__name__: config for config in COMMANDS.values() if dataclasses.is_dataclass(config)}
    for name, headings in HEADINGS.items():
        assert headings.keys() <= {field.name for field in dataclasses.fields(configs[name])}, name
