"""From what is typed, and a YAML file, to a typed config."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import tyro
import yaml

from vidray import logs
from vidray.api import prepare_process
from vidray.errors import UsageError
from vidray.flags import check_flags, config_file_arguments, flag_name, known_flags, with_known_spelling


def parse(config_class: Any, arguments: list[str], *, prog: str) -> Any:
    """A typed config from flags and, with ``--config FILE``, from a YAML file. Flags win over the file.

    Raises UsageError for a file that cannot be read, and for flags that are not known; exits with 2 for others that
    will not do.
    """
    if "-h" in arguments or "--help" in arguments:
        from vidray.cli.help import command_help

        print(command_help(prog.removeprefix("vidray "), config_class))
        raise SystemExit(0)
    flags = known_flags(config_class)
    from_file, places = _config_file(arguments)
    logs.configure(_log_format([*from_file, *arguments]))  # now, for what is wrong with the others
    check_flags(from_file, flags, prog=prog, places=places)
    check_flags(arguments, flags, prog=prog)
    args = with_known_spelling(from_file + arguments, flags)
    config = tyro.cli(config_class, prog=prog, config=(tyro.conf.OmitArgPrefixes,), args=args)
    prepare_process(config, on_wait=_warn)
    return config


def _config_file(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The flags that a config file stands for, and where in it each stands."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(arguments)[0].config
    if path is None:
        return [], {}
    try:
        text = Path(path).read_text()
        values, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: got {type(values).__name__}, allowed is a mapping of flag names to values")
    given = {argument.split("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    places = {flag_name(str(key.value)): f"{path}, line {key.start_mark.line + 1}: " for key, _ in tree.value}
    return config_file_arguments(values, given=given), places


def _log_format(arguments: list[str]) -> logs.LogFormat:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--log-format", "--log_format", default="text")
    return "json" if finder.parse_known_args(arguments)[0].log_format.lower() == "json" else "text"


def _warn(text: str) -> None:
    if not logs.is_json():
        print(f"vidray: {text}", file=sys.stderr, flush=True)
