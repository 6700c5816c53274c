"""From windows to moments: intervals of a video with one label, and how they are written for others to read."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vidray.errors import RunError
from vidray.flags import require, shown_as
from vidray.results.read import CurrentRows
from vidray.storage.store import create_file

Format = Literal["csv", "activitynet", "webvtt"]
MIN_SCORE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A part of a video, ``[start_seconds, end_seconds)``, that shows one thing."""

    uri: str
    start_seconds: float
    end_seconds: float
    label: str
    score: float
    """Of the window that is surest."""
    mean_score: float
    """Over its windows."""


def merge(uri: str, segments: Iterable[dict[str, Any]], *, min_score: float) -> list[Moment]:
    """The moments of a video, by start: windows that touch or overlap and have one label are one moment.

    Args:
        segments: as in the column of that name, of one row or of several spans of the video.
        min_score: windows whose best label scores less are left out.
    """
    groups: dict[str, list[list[dict[str, Any]]]] = {}
    ends: dict[str, float] = {}
    good = (segment for segment in segments if segment["score"] >= min_score)
    for segment in sorted(good, key=lambda segment: segment["start_seconds"]):
        label, of_label = segment["label"], groups.setdefault(segment["label"], [])
        if segment["start_seconds"] <= ends.get(label, -1.0):
            of_label[-1].append(segment)
        else:
            of_label.append([segment])
        ends[label] = max(ends.get(label, -1.0), segment["end_seconds"])
    moments = [_moment(uri, windows) for of_label in groups.values() for windows in of_label]
    return sorted(moments, key=lambda moment: (moment.start_seconds, moment.label))


def _moment(uri: str, windows: Sequence[dict[str, Any]]) -> Moment:
    scores = [window["score"] for window in windows]
    return Moment(
        uri=uri,
        start_seconds=windows[0]["start_seconds"],
        end_seconds=max(window["end_seconds"] for window in windows),
        label=windows[0]["label"],
        score=max(scores),
        mean_score=sum(scores) / len(scores),
    )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write when something happens in each video: neighbouring windows with one label, merged into moments."""

    output: Annotated[str, shown_as("URI")]
    """The folder that `vidray score --segments` wrote."""
    format: Format = "csv"
    """csv: a line for each moment. activitynet: the JSON of ActivityNet's evaluation. webvtt: chapters that a browser
    shows with <video>, a file for each video."""
    to: Annotated[str | None, shown_as("URI")] = None
    """A new file, for webvtt a folder. Default: printed, which webvtt can for one video only."""
    min_score: float = MIN_SCORE
    """Leave out windows whose best label scores less."""

    def __post_init__(self) -> None:
        require(0 <= self.min_score <= 1, "--min-score", self.min_score, "between 0 and 1")


def export(config: ExportConfig) -> str | None:
    """What there is to print; None if it was written.

    Raises:
        UsageError: it cannot be printed.
        RunError: there are no segments, or the place is taken, or a store failed.
    """
    segments: dict[str, list[dict[str, Any]]] = {}
    for block in CurrentRows(config.output).latest("segments"):
        for row in block.to_pylist():  # of a video, or of a span of one
            if row["segments"][0]["label"] is None:
                raise RunError(
                    f"{config.output} holds segments without labels (--no-labels), of which no moments are made"
                )
            segments.setdefault(row["uri"], []).extend(_counting(row["segments"], min_score=config.min_score))
    if not segments:
        raise RunError(f"{config.output} holds no segments; vidray score --segments SECONDS finds them")
    moments = {uri: merge(uri, found, min_score=config.min_score) for uri, found in segments.items()}
    if config.format != "webvtt":
        text = to_csv(moments) if config.format == "csv" else to_activitynet(moments)
        if config.to is None:
            return text
        create_file(config.to, text.encode())
        return None
    names, texts = names_of(moments), {uri: to_webvtt(found) for uri, found in moments.items()}
    if config.to is not None:
        for uri, text in texts.items():
            # Keys of a bucket may hold .., and would lead out of the folder.
            parts = ["_" if part in ("", ".", "..") else part for part in names[uri].split("/")]
            create_file(f"{config.to.rstrip('/')}/{'/'.join(parts)}.vtt", text.encode())
        return None
    require(len(texts) == 1, "--to", None, f"a folder for the files of {len(texts):,} videos")
    return next(iter(texts.values()))


def _counting(segments: Sequence[dict[str, Any]], *, min_score: float) -> list[dict[str, Any]]:
    """Those that score enough, with no more than what moments are made of."""
    names = ("start_seconds", "end_seconds", "label", "score")
    return [{name: segment[name] for name in names} for segment in segments if segment["score"] >= min_score]


def names_of(uris: Iterable[str]) -> dict[str, str]:
    """A short name for each: the file's name without its extension; where two have the same, their folders as well."""
    left, names, depth = sorted(set(uris)), dict[str, str](), 1
    while left:
        short = {uri: "/".join(posixpath.splitext(uri)[0].split("/")[-depth:]) for uri in left}
        counts = Counter(short.values())
        whole = {uri for uri in left if depth > uri.count("/")}  # they differ in their extensions alone
        names |= {uri: uri if uri in whole else short[uri] for uri in left if counts[short[uri]] == 1 or uri in whole}
        left, depth = [uri for uri in left if uri not in names], depth + 1
    return names


def to_csv(moments: dict[str, list[Moment]]) -> str:
    """uri, start_seconds, end_seconds, label, score, mean_score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Moment.__slots__)
    every = [moment for found in moments.values() for moment in found]
    writer.writerows([getattr(moment, name) for name in Moment.__slots__] for moment in every)
    return text.getvalue()


def to_activitynet(moments: dict[str, list[Moment]]) -> str:
    """The submission format of ActivityNet's detection task, version 1.3 (github.com/activitynet/ActivityNet)."""
    names = names_of(moments)
    results = {
        names[uri]: [{"label": m.label, "score": m.score, "segment": [m.start_seconds, m.end_seconds]} for m in found]
        for uri, found in moments.items()
    }
    return json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}}, ensure_ascii=False) + "\n"


def to_webvtt(moments: Sequence[Moment]) -> str:
    """A chapter for each moment (W3C, WebVTT: The Web Video Text Tracks Format)."""
    cues = [
        f"{_clock(moment.start_seconds)} --> {_clock(moment.end_seconds)}\n{_cue_text(moment.label)}\n"
        for moment in moments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _cue_text(label: str) -> str:
    """A label on one line, without what WebVTT would take for markup."""
    escaped = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.split()) or "-"
