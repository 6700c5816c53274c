"""What the configs of all commands share: how a flag is checked, shown and read from a YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from vidray.errors import UsageError
from vidray.types import ViewConfig

VIEW_FLAGS = ("span", "stride", "aggregation", "square_pixels", "video_stream", "decoder")
"""Fields of all configs that take the place of the same in the checkpoint's view config, unless None or False."""


def override_view(base: ViewConfig, views: str | None, asked: Mapping[str, Any]) -> ViewConfig:
    """A checkpoint's view config with what was asked for in its place.

    Args:
        views: CLIPSxCROPS.
        asked: fields of the view config; None and False leave the checkpoint's.

    Raises:
        ValueError: they contradict each other.
        UsageError: of several video streams, one is asked for that the decoder does not take.
    """
    changes = {name: value for name, value in asked.items() if value is not None and value is not False}
    if views is not None:
        changes["num_clips"], changes["num_crops"] = parse_views(views) or (1, 1)
    view = dataclasses.replace(base, **changes)
    stream = changes.get("video_stream", "first")
    is_taken = view.decoder != "pytorchvideo" or stream == "first"
    require(is_taken, "--video-stream", stream, "first with --decoder pytorchvideo, which takes no other")
    return view


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


def parse_age(text: str) -> float | None:
    """``"26h"`` → seconds; units are s, m, h and d. None if it is not of that form."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else None


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


def known_flags(config_class: Any) -> dict[str, Any]:
    """``--max-attempts`` → its type, for every field of a config, and for those of configs within it, or of all between
    which there is a choice."""
    flags: dict[str, Any] = {}
    if not dataclasses.is_dataclass(config_class):
        for choice in typing.get_args(config_class):
            flags |= known_flags(typing.get_args(choice)[0])
        return flags
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            flags |= known_flags(typing.cast(type, hint))
        elif field.init:
            flags[flag_name(field.name)] = hint
            if hint is bool:
                flags[_negated(flag_name(field.name))] = hint
    return flags


def check_flags(
    arguments: Sequence[str], flags: Mapping[str, Any], *, prog: str, places: Mapping[str, str] | None = None
) -> None:
    """Raise UsageError for a flag that there is not, with the nearest ones, and for a number that is none.

    Args:
        flags: those of `known_flags`.
        places: where a flag stands, if not on the command line.
    """
    for at, argument in enumerate(arguments):
        if not argument.startswith("--") or argument in ("--", "--help"):
            continue
        flag, has_value, value = argument.partition("=")
        flag = flag.replace("_", "-")
        where = (places or {}).get(flag, "")
        if flag not in flags:
            raise UsageError(f"{where}got {flag}, which is no flag{_nearest(flag, flags)}; {prog} --help lists all")
        if not has_value and at + 1 < len(arguments):
            value = arguments[at + 1]
        _check_number(where + flag, flags[flag], value)


def with_known_spelling(arguments: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """The same arguments, the values of flags with a choice of words written as the choice is: case does not count."""
    spelled = list(arguments)
    for at, argument in enumerate(arguments):
        flag, has_value, value = argument.partition("=")
        choices = choices_of(flags.get(flag.replace("_", "-")))
        if has_value:
            spelled[at] = f"{flag}={choices.get(value.lower(), value)}"
        elif choices and at + 1 < len(arguments):
            spelled[at + 1] = choices.get(arguments[at + 1].lower(), arguments[at + 1])
    return spelled


def choices_of(hint: Any) -> dict[str, str]:
    """What may stand behind a flag: of a ``Literal`` of words, also within a union: each in lower case → as it is."""
    if typing.get_origin(hint) is typing.Literal:
        return {word.lower(): word for word in typing.get_args(hint) if isinstance(word, str)}
    return {low: word for one in typing.get_args(hint) for low, word in choices_of(one).items()}


_ALSO_CALLED = {
    **{"--lr": "--learning-rate", "--bs": "--global-batch-size", "--batch": "--global-batch-size"},
    **{"--data": "--source", "--input": "--source", "--output-dir": "--output", "--out": "--output"},
    **{"--num-epochs": "--epochs", "--num-workers": "--workers", "--val-split": "--validation-share"},
    **{"--checkpoint": "--model", "--gpu": "--device"},
}
"""What other programs call our flags."""


def _nearest(flag: str, flags: Mapping[str, Any]) -> str:
    if (ours := _ALSO_CALLED.get(flag)) in flags:
        return f"; here it is {ours}"
    near = difflib.get_close_matches(flag, flags, n=3)
    return f"; the nearest: {' '.join(near)}" if near else ""


def _check_number(flag: str, hint: Any, value: str) -> None:
    kinds = {kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)}
    words = choices_of(hint)
    numbers = kinds & {int, float}
    if len(numbers) != 1 or len(kinds - numbers) > bool(words) or value.lower() in words:
        return
    (kind,) = numbers
    try:
        kind(value)
    except ValueError:
        allowed = " or ".join(["a whole number" if kind is int else "a number", *words.values()])
        raise UsageError(f"{flag}: got {value!r}, allowed is {allowed}") from None


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
