"""``vidray COMMAND --help``: two examples, then the flags under headings, no wider than the screen."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import tyro

from vidray.errors import EXIT_CODES
from vidray.flags import choices_of, flag_name

EXAMPLES = {
    "score": (
        "vidray score --source s3://bucket/videos/ --model s3://bucket/models/ucf101 --output s3://bucket/scores/",
        "vidray score --config nightly.yaml --dry-run",
    ),
    "nightly": (
        "vidray nightly --config nightly.yaml --max-drift 0.2 --notify '$SLACK_WEBHOOK'",
        "vidray nightly --source s3://bucket/videos/ --model s3://bucket/models/ucf101 --output s3://bucket/scores/",
    ),
    "verify": ("vidray verify --output scores", "vidray verify --output s3://bucket/scores/"),
    "query": (
        "vidray query --output s3://bucket/scores/",
        'vidray query --output scores "SELECT label, count(*) FROM predictions GROUP BY label" --to labels.csv',
    ),
    "compact": ("vidray compact --output scores", "vidray compact --output s3://bucket/scores/"),
    "forget": (
        "vidray forget --output scores --uri /videos/a.mp4 --dry-run",
        "vidray forget --output s3://bucket/scores/ --manifest erase.csv",
    ),
    "export": (
        "vidray export --output scores --to moments.csv",
        "vidray export --output scores --format webvtt --to chapters --min-score 0.8",
    ),
    "similar": (
        "vidray similar --output scores --to videos/a.mp4",
        "vidray similar --output s3://bucket/scores/ --duplicates 0.98",
    ),
    "compare": (
        "vidray compare --output s3://bucket/scores/ --max-drift 0.2",
        "vidray compare --output scores 20261120-020000-ab12 20261127-020000-cd34",
    ),
    "report": (
        "vidray report --output s3://bucket/scores/ --to report.html",
        "vidray report --model my-model --to training.html",
    ),
    "status": (
        "vidray status --output s3://bucket/scores/",
        "vidray status --output s3://bucket/scores/ --max-age 26h --json",
    ),
    "show": (
        "vidray show clip.mp4 --model MCG-NJU/videomae-base-finetuned-kinetics --to clip.png",
        "vidray show s3://bucket/videos/a.mp4 --output s3://bucket/scores/",
    ),
    "preview": (
        "vidray preview --source videos/ --model MCG-NJU/videomae-base",
        "vidray preview --source videos/ --model MCG-NJU/videomae-base --no-augmented --output preview.gif",
    ),
    "train": (
        "vidray train --source videos/ --model MCG-NJU/videomae-base --output my-model",
        "vidray train --source kinetics.csv --video-root s3://bucket/k400/ --model MCG-NJU/videomae-base "
        "--output s3://bucket/models/k400 --recipe videomae --workers 8",
    ),
    "evaluate": (
        "vidray evaluate --source videos/ --model my-model --views 5x3",
        "vidray evaluate --source testlist.csv --model my-model --output evaluation",
    ),
    "new": (
        "vidray new X3D x3d_m models/x3d --labels 3",
        "vidray new VideoMAE small models/videomae --labels labels.txt",
    ),
    "convert": (
        "vidray convert movinet movinet_a0_stream/ckpt-1 movinet-a0-stream --labels kinetics_600.txt",
        "vidray convert pytorchvideo x3d_m X3D_M.pyth x3d-m",
    ),
    "models": ("vidray models", "vidray models --family movinet"),
    "demo": ("vidray demo", "vidray demo --folder /tmp/demo --num-training 120"),
}

HEADINGS: dict[str, dict[str, str]] = {
    "ScoreConfig": {
        "source": "What",
        "views": "How a video is seen",
        "top_k": "What is kept of a video",
        "streaming": "Long videos, and when something happens in them",
        "device": "The model",
        "notify": "The run",
        "rows_per_part": "How the work is divided",
        "limits": "What one video may cost",
    },
    "TrainConfig": {
        "source": "What",
        "recipe": "How to train",
        "views": "How a video is seen",
        "flip": "Augmentation",
        "video_root": "Labels and the split",
        "validate_every": "Validation",
        "save_every_steps": "States, logs and the Hub",
        "workers": "Where it runs",
        "limits": "What one video may cost",
    },
    "EvaluateConfig": {
        "source": "What",
        "views": "How a video is seen",
        "device": "Where it runs",
        "limits": "What one video may cost",
    },
    "PreviewConfig": {
        "source": "What",
        "recipe": "How clips are made",
        "video_root": "Labels and the split",
        "limits": "What one video may cost",
    },
}
HEADINGS["NightlyConfig"] = HEADINGS["ScoreConfig"] | {"max_drift": "After scoring"}
"""Of each config: the field at which a heading begins."""

_MAX_WIDTH = 100
_WITH_EXIT_CODES = {"score", "nightly", "status"}
"""Commands that a scheduler or a monitor calls."""
_CODE_COLUMN = 7
_COLUMN = 26
"""Where the explanations begin."""
_NAMES = {int: "INT", float: "NUMBER", str: "TEXT"}


def command_help(command: str, config_class: Any) -> str:
    """The help of a command, whose flags are those of a config, or of all between which there is a choice."""
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    lines: list[str] = []
    if dataclasses.is_dataclass(config_class):
        lines += [*_wrap(f"vidray {command}: {inspect.getdoc(config_class)}", width), ""]
    lines += ["examples:", *(line for text in EXAMPLES[command] for line in _example(text, width))]
    for name, choice in _choices(config_class):
        if name:
            lines += ["", *_wrap(f"vidray {command} {name}: {inspect.getdoc(choice)}", width)]
        lines += _sections(choice, width)
    if command in _WITH_EXIT_CODES:
        lines += ["", "exit codes:", *(line for code in EXIT_CODES for line in _exit_code(code, width))]
    return "\n".join(lines)


def _exit_code(code: int, width: int) -> Iterator[str]:
    for number, line in enumerate(_wrap(EXIT_CODES[code], width - _CODE_COLUMN)):
        yield f"{f'  {code}' if number == 0 else '':{_CODE_COLUMN}}{line}"


def _choices(config_class: Any) -> list[tuple[str, Any]]:
    """(name, config) of each subcommand; one without a name where there are none."""
    if dataclasses.is_dataclass(config_class):
        return [("", config_class)]
    found = []
    for choice in typing.get_args(config_class):
        cls, *metadata = typing.get_args(choice)
        found.append((next(data.name for data in metadata if hasattr(data, "name")), cls))
    return found


def _sections(config_class: Any, width: int, *, has_headings: bool = True) -> Iterator[str]:
    headings, texts = HEADINGS.get(config_class.__name__, {}), _docstrings(config_class)
    hints = typing.get_type_hints(config_class, include_extras=True)
    for number, item in enumerate(dataclasses.fields(config_class)):
        hint = hints[item.name]
        if has_headings and (item.name in headings or number == 0):
            yield from ("", f"{headings.get(item.name, 'options')}:")
        if dataclasses.is_dataclass(hint):
            yield from _sections(hint, width, has_headings=False)
        else:
            yield from _entry(item, hint, texts[item.name], width)


def _entry(item: dataclasses.Field[Any], hint: Any, text: str, width: int) -> Iterator[str]:
    """A flag and its explanation."""
    left, lines = f"  {_spelled(item, hint)}", _wrap(text + _default(item, text), width - _COLUMN)
    if len(left) > _COLUMN - 2:
        yield left
        left = ""
    for number, line in enumerate(lines):
        yield f"{left if number == 0 else '':{_COLUMN}}{line}"


def _spelled(item: dataclasses.Field[Any], hint: Any) -> str:
    metadata = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    plain = typing.get_args(hint)[0] if metadata else hint
    metavar = next((data.metavar for data in metadata if getattr(data, "metavar", None)), None)
    if any(marker in metadata for marker in typing.get_args(tyro.conf.Positional[str])[1:]):
        return str(metavar)
    flag = flag_name(item.name)
    if plain is bool:
        return f"--no-{flag[2:]}" if item.default is True else flag
    if metavar is None:
        words = list(choices_of(plain).values())
        kinds = typing.get_args(plain) or (plain,)
        metavar = "|".join(words) if words else next((_NAMES[kind] for kind in kinds if kind in _NAMES), "yes|no")
    return f"{flag} {metavar}"


def _default(item: dataclasses.Field[Any], text: str) -> str:
    """What the explanation does not say: that it must be given, or what it is otherwise."""
    if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
        return " (required)"
    if "Default:" in text or item.default in (None, True, False, (), dataclasses.MISSING):
        return ""
    is_number = isinstance(item.default, int | float)
    return f" (default: {item.default:,.10g})" if is_number else f" (default: {item.default})"


def _docstrings(config_class: Any) -> dict[str, str]:
    """The string below each field."""
    bases = [base for base in config_class.__bases__ if dataclasses.is_dataclass(base)]
    texts: dict[str, str] = {name: text for base in bases for name, text in _docstrings(base).items()}
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_class)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    for before, after in itertools.pairwise(body):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            texts[before.target.id] = " ".join(str(after.value.value).split()) if is_text else ""  # type: ignore[attr-defined]
    return texts


def _example(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [f"  {line} \\" for line in lines[:-1]] + [f"  {lines[-1]}"]


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False) or [""]
