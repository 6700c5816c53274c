"""What the configs of all commands share: how a flag is checked, shown and read from a YAML file."""

from __future__ import annotations

import math
import re
from typing import Any

import tyro

from vidray.errors import UsageError


def shown_as(metavar: str) -> object:
    """How the help names a flag's value, where its type says too little."""
    return tyro.conf.arg(metavar=metavar)


def flag_name(field: str) -> str:
    """``max_attempts`` → ``--max-attempts``."""
    return "--" + field.replace("_", "-")


def require(holds: bool, flag: str, got: object, allowed: str) -> None:
    """Raise UsageError, with what was got and what is allowed, unless ``holds``."""
    if not holds:
        raise UsageError(f"{flag}: got {got!r}, allowed is {allowed}")


def require_deadline(seconds: float) -> None:
    """Raise UsageError unless ``--store-deadline-seconds`` is a time. 0: a store is asked once."""
    require(0 <= seconds < math.inf, "--store-deadline-seconds", seconds, "a number of seconds, at least 0")


def parse_views(text: str) -> tuple[int, int] | None:
    """``"5x3"`` → (5 clips, 3 crops); None if it is not of that form."""
    match = re.fullmatch(r"([1-9]\d{0,2})x([13])", text.strip())
    return (int(match[1]), int(match[2])) if match else None


def parse_pool(text: str) -> tuple[int, int] | None:
    """``"4"`` → (4, 4), ``"1:8"`` → (1, 8); None if it is not of that form."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?::([1-9]\d{0,4}))?", text.strip())
    if not match:
        return None
    low, high = int(match[1]), int(match[2] or match[1])
    return (low, high) if low <= high else None


def config_file_arguments(values: dict[str, Any], *, given: set[str]) -> list[str]:
    """Flags that say the same as a config file, less those in ``given``: what is typed wins over what is on file.

    The file goes through the same parser as the command line, so there is one definition for both.
    Raises UsageError for values that are neither scalars nor lists of them.
    """
    arguments: list[str] = []
    for key, value in values.items():
        flag = "--" + str(key).replace("_", "-")
        if flag in given or _negated(flag) in given or value is None:
            continue
        arguments += _flag_arguments(flag, value)
    return arguments


def _negated(flag: str) -> str:
    return "--no-" + flag.removeprefix("--")


def _flag_arguments(flag: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else _negated(flag)]
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in items):
        raise UsageError(
            f"config file, {flag.removeprefix('--')}: got {value!r}, allowed are a value or a list of values"
        )
    return [f"{flag}={item}" for item in items]
