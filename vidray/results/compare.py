"""``vidray compare``: what changed from one run to another, in the terminal, for a script, or as an exit code."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
import tyro

from vidray.errors import TooMuchChangedError
from vidray.flags import require, shown_as
from vidray.pages.words import count, percent
from vidray.results.accuracy import Accuracy
from vidray.results.changes import MARKED, Change, Flips
from vidray.results.comparison import Comparison, compare_runs, write_profile
from vidray.results.run_rows import Run
from vidray.results.table import clean, format_table, screen_width

_MOST = 5
"""Values of a column that are shown, those that moved most."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Print what changed from one run of vidray score to another. By the same model and views: how far the shares of
    labels, scores, statuses, codecs, durations and sizes moved; by others: which videos changed their label. Keeps a
    profile of the run, _runs/<run>/profile.parquet, once, by which months of nights can be plotted."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], shown_as("[[EARLIER] LATER]")] = ()
    """Which runs. Default: the last that has ended, and the last good run before it, of the same model, views and
    sources if there is one."""
    output: Annotated[str, shown_as("URI")]
    """The folder that vidray score wrote to."""
    max_drift: Annotated[float | None, shown_as("DISTANCE")] = None
    """Exit with code 4 if labels, scores or statuses moved further, as a Jensen-Shannon distance from 0 to 1, and
    further than by chance. Codecs, durations and sizes are shown, and do not count."""
    max_flips: Annotated[float | None, shown_as("SHARE")] = None
    """Exit with code 4 if more than this share of the videos that both models scored have another label."""
    labelled: Annotated[str | None, shown_as("SOURCE")] = None
    """Of two models, also tell how often each is right: a folder, table or list of labelled videos, as for vidray
    train."""
    json: bool = False
    """Print one JSON object instead."""
    profile: bool = True
    """Keep the profile of the run, if there is none yet. --no-profile: write nothing."""

    def __post_init__(self) -> None:
        require(len(self.runs) <= 2, "RUN", " ".join(self.runs), "two runs, the earlier one first, or one, or none")
        for flag, value in (("--max-drift", self.max_drift), ("--max-flips", self.max_flips)):
            require(value is None or 0 <= value <= 1, flag, value, "a number from 0 to 1")


def compare(config: CompareConfig) -> None:
    """Print what changed, and keep the profile.

    Raises:
        TooMuchChangedError: it is more than is allowed.
        UsageError: there is no such run, or the labelled source will not do.
        RunError: no run has ended, or the store failed.
    """
    earlier, later = (None, None, *config.runs)[-2:]
    found = compare_runs(config.output, later, earlier, labelled=config.labelled)
    told = found.exceeded(max_drift=config.max_drift, max_flips=config.max_flips)
    if config.json:
        print(json.dumps(found.to_dict() | {"exceeded": told}, ensure_ascii=False))
    else:
        print(format_comparison(found, width=screen_width()))
    if config.profile:
        write_profile(found)
    if told is not None:
        raise TooMuchChangedError(told)


def format_comparison(found: Comparison, *, width: int | None) -> str:
    """Text for a screen of some characters; None: nothing is cut."""
    run, other = found.run, found.other
    following = f"next: vidray report --output {shlex.quote(found.output)} --run {shlex.quote(run.run_id)}"
    if other is None:
        return f"run {run.run_id} is the first of {found.output}: there is nothing to compare it with\n{following}"
    lines = ["before  " + _name(other), "now     " + _name(run), ""]
    lines += _moved(found.changes, width) if found.flips is None else _flipped(found.flips, width)
    if found.accuracy is not None:
        lines += ["", *_right(found.accuracy, width)]
    return "\n".join([*lines, "", f"{following} --against {shlex.quote(other.run_id)}"])


def _name(run: Run) -> str:
    summary = run.summary
    state = "" if summary["outcome"] == "success" else f", {summary['outcome'].replace('_', ' ')}"
    time = summary["created_at"][:16].replace("T", " ")
    return f"{run.run_id}, planned {time}, by {clean(summary['model'])}{state}"


def _moved(changes: Sequence[Change], width: int | None) -> list[str]:
    rows = [
        {"of": one.name, "distance": f"{one.distance:.2f}", "by chance": f"{one.by_chance:.2f}"}
        | {"before": one.num_before, "now": one.num_after, "": one.told}
        for one in changes
    ]
    lines = ["how far shares moved: 0 is the same, 1 nothing in common (Jensen-Shannon)", _table(rows, width)]
    marked = [one for one in changes if one.is_marked]
    if not marked:
        return [*lines, "", f"nothing moved by {MARKED} or more, and more than it does by chance"]
    for one in marked:
        lines += ["", f"what moved most: {one.name}", _table(_values(one), width)]
    return lines


def _values(change: Change) -> list[dict[str, Any]]:
    return [
        {change.name: value, "before": before, "share": percent(before / max(change.num_before, 1))}
        | {"now": now, "share now": percent(now / max(change.num_after, 1))}
        for value, before, now in change.moved[:_MOST]
    ]


def _flipped(found: Flips, width: int | None) -> list[str]:
    if not found.num_common:
        return ["other model or views, and no object that both gave a label: nothing to compare"]
    told = f"other model or views: {found.num_changed:,} of {count(found.num_common, 'video')} that both scored "
    lines = [told + f"({percent(found.share)}) have another label"]
    if found.pairs:
        pairs = [
            {"label before": old, "label now": new, "videos": num, "of the changes": percent(num / found.num_changed)}
            for old, new, num in found.pairs
        ]
        examples = [
            {"label before": old, "score": score, "label now": new, "score now": now, "video": uri}
            for uri, old, score, new, now in found.examples
        ]
        lines += ["", _table(pairs, width), "", "surest changes", _table(examples, width)]
    return lines


def _right(found: Accuracy, width: int | None) -> list[str]:
    rows = [
        {"right label": label, "videos": num, "right before": percent(old / num), "right now": percent(new / num)}
        for label, num, old, new in found.labels
    ]
    return [found.told, *(["", _table(rows, width)] if rows else [])]


def _table(rows: Sequence[dict[str, Any]], width: int | None) -> str:
    return format_table(pa.Table.from_pylist(list(rows)), width=width)
