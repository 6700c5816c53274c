"""``vidray show``: one video in the terminal or as a picture: frames with their times, and what models make of it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vidray.errors import RunError, UsageError, VideoError
from vidray.flags import parse_views, require, shown_as
from vidray.pages.picture import video_picture
from vidray.pages.shown import MAX_FRAMES, ShownClip, ShownScores, ShownVideo
from vidray.pages.strips import clip_spans, frame_times, shown_aspect, strip_sandbox
from vidray.pages.terminal import format_video, shows_colours
from vidray.pages.words import file_name, seconds
from vidray.progress import format_bytes
from vidray.results.session import Session
from vidray.results.table import screen_width
from vidray.results.views import literal
from vidray.sources.rows import time_range_of
from vidray.sources.tar_shards import video_at
from vidray.storage.fetch import fetch
from vidray.storage.redaction import public_uri
from vidray.storage.store import file_place
from vidray.types import Limits, Status, TimeRange, VideoInfo, ViewConfig

if TYPE_CHECKING:
    from vidray.scoring.classifier import Look

_SIZE = 288
"""Pixels of a frame's sides where no model says what it sees: twice the height that is drawn."""
_LIMITS = Limits(fetch_deadline_seconds=30.0)
"""Somebody waits."""
_PIPED_WIDTH = 100
_MAX_WINDOWS = 12


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Show one video, in the terminal or as a PNG: frames with their times, what decoding finds out and, with a model,
    the views that it sees, what it makes of each, and its best labels. (vidray preview shows the clips of many labelled
    videos as training augments them.)"""

    video: Annotated[tyro.conf.Positional[str], shown_as("URI|FILE")]
    """The video: a path, s3://, gs://, az://, https://; a member of a tar file as TAR#MEMBER."""
    model: Annotated[str | None, shown_as("URI|HUB_ID")] = None
    """Score it with this checkpoint. Default: frames of the whole video."""
    output: Annotated[str | None, shown_as("URI")] = None
    """Show also what a folder that vidray score wrote to holds of it: its current row."""
    to: Annotated[str | None, shown_as("FILE.png")] = None
    """Draw a picture; a file that is there is replaced. Default: in the terminal, frames where it shows 24-bit
    colours (COLORTERM=truecolor)."""
    views: Annotated[str | None, shown_as("CLIPSxCROPS")] = None
    """With --model: views as CLIPSxCROPS. Default: what the checkpoint was validated with, else 5x1."""
    top_k: int = 5
    """Labels that are shown."""
    labels: Annotated[str | None, shown_as("LABEL;…|FILE")] = None
    """With a model that compares videos with texts (X-CLIP): what to tell apart, as for score."""
    prompt: Annotated[str, shown_as("TEXT")] = "{}"
    """With --labels: what such a model reads for a label, as for score."""

    def __post_init__(self) -> None:
        require(self.to is None or self.to.lower().endswith(".png"), "--to", self.to, "a name that ends in .png")
        require(self.views is None or parse_views(self.views) is not None, "--views", self.views, "like 5x3 or 1x1")
        require(self.top_k >= 1, "--top-k", self.top_k, "at least 1")
        require(self.prompt == "{}" or self.labels is not None, "--prompt", self.prompt, "a prompt with --labels")
        for flag in ("views", "labels"):
            got = getattr(self, flag)
            require(got is None or self.model is not None, f"--{flag}", got, "nothing without --model")


def show(config: ShowConfig) -> None:
    """Print the video, or draw it.

    Raises:
        UsageError: there is no such video, row or model.
        RunError: the video cannot be decoded or scored, or a store failed.
    """
    video = look_at(config)
    if config.to is None:
        has_colours = shows_colours(sys.stdout, os.environ)
        if video.clips and sys.stdout.isatty() and not has_colours:
            note = "vidray: this terminal does not say that it shows 24-bit colours; --to FILE.png draws the frames"
            print(note, file=sys.stderr)
        print(format_video(video, width=screen_width() or _PIPED_WIDTH, has_colours=has_colours))
        return
    store, name = file_place(config.to)
    store.overwrite(name, video_picture(video))
    print(f"written to {config.to}")


def look_at(config: ShowConfig) -> ShownVideo:
    """What is to be shown; raises as `show`."""
    row = None if config.output is None else _stored_row(config.output, config.video)
    scores = [] if row is None else [_stored_scores(row, config.top_k)]
    name = file_name(public_uri(config.video))
    try:
        return _decoded(config, row, name, scores)
    except VideoError as error:
        problem = f"{error.status}: {error.message}"
        if row is not None and config.model is None:
            return ShownVideo(
                title=name, facts=_facts_of_row(row), aspect=1.0, clips=(), scores=scores, problem=problem
            )
        if error.status is Status.NOT_FOUND:
            raise UsageError(f"got {public_uri(config.video)!r}, allowed is a video that is there") from error
        raise RunError(f"{public_uri(config.video)} is {problem}") from error


def _decoded(config: ShowConfig, row: dict[str, Any] | None, name: str, scores: list[ShownScores]) -> ShownVideo:
    time_range = time_range_of(row or {})
    data = fetch(video_at(config.video, etag=row["etag"] if row else None), limits=_LIMITS)
    if config.model is None:
        clip, info = _whole_video(data, time_range)
        clips, aspect = [clip], shown_aspect(info)
    else:
        clips, info, by_model = _by_model(config, data, time_range)
        scores, aspect = [by_model, *scores], 1.0
    return ShownVideo(title=name, facts=_facts(info, len(data)), aspect=aspect, clips=clips, scores=scores)


def _whole_video(data: bytes, time_range: TimeRange) -> tuple[ShownClip, VideoInfo]:
    with strip_sandbox(num_frames=MAX_FRAMES, size=_SIZE, limits=_LIMITS) as sandbox:
        views_VTHWC, info = sandbox.decode(data, time_range=time_range)
    spans = clip_spans(info, time_range=time_range)
    times = frame_times(spans[0] if spans else None, info.fps, num_frames=MAX_FRAMES)
    return ShownClip(title="", frames=views_VTHWC[0], times=times), info


def _by_model(config: ShowConfig, data: bytes, time_range: TimeRange) -> tuple[list[ShownClip], VideoInfo, ShownScores]:
    from vidray.checkpoints.convert import parse_labels
    from vidray.scoring.classifier import Classifier

    labels = () if config.labels is None else parse_labels(config.labels)
    assert config.model is not None
    with Classifier(
        config.model, views=config.views, top_k=config.top_k, labels=labels, prompt=config.prompt
    ) as classifier:
        look, view = classifier.look(data, time_range=time_range), classifier.view
    top_k = [(one["label"], one["score"]) for one in look.answer]
    return _clips(look, view, time_range), look.info, ShownScores(title=f"by {config.model}", top_k=top_k)


def _clips(look: Look, view: ViewConfig, time_range: TimeRange) -> list[ShownClip]:
    spans = clip_spans(look.info, view=view, time_range=time_range)
    clips = []
    for number, (frames_THWC, answer) in enumerate(zip(look.views, look.view_answers, strict=True)):
        clip, crop = divmod(number, view.num_crops)
        span = spans[clip] if spans else None
        title = [f"clip {clip + 1} of {view.num_clips}"]
        title += [f"crop {crop + 1} of {view.num_crops}"] if view.num_crops > 1 else []
        title += [f"{seconds(float(span.start_seconds))} to {seconds(float(span.end_seconds))}"] if span else []
        title += [", ".join(f"{one['label']} {one['score']:.2f}" for one in answer[:3])]
        times = frame_times(span, look.info.fps, num_frames=len(frames_THWC))
        clips.append(ShownClip(title=" · ".join(title), frames=frames_THWC, times=times))
    return clips


def _facts(info: VideoInfo, num_bytes: int) -> str:
    facts = [seconds(info.duration_seconds)] if info.duration_seconds is not None else []
    facts += [f"{info.width} × {info.height}"] if info.width else []
    facts += [f"{info.fps:.4g} fps"] if info.fps else []
    return " · ".join([*facts, info.codec or "unknown codec", format_bytes(num_bytes)])


# -- what an output holds of it ---------------------------------------------------------------------------------------

_ROWS = """SELECT uri, etag, size_bytes, status, error, label, score, top_k, segments, model, scored_at,
       start_seconds, end_seconds, count(*) OVER ()::INTEGER AS num_rows
FROM predictions WHERE uri = {uri} ORDER BY scored_at DESC NULLS LAST, start_seconds NULLS FIRST LIMIT 1"""


def _stored_row(output: str, video: str) -> dict[str, Any]:
    """The current row that was made last; ``num_rows`` says how many there are."""
    uri = public_uri(video) if "://" in video else os.path.abspath(video)
    with Session(output) as session:
        rows = session.run(_ROWS.format(uri=literal(uri))).to_pylist()
    if not rows:
        raise UsageError(f"--output: got {output!r}, which has no row of {uri}; vidray query lists those it has")
    return rows[0]


def _stored_scores(row: dict[str, Any], most: int) -> ShownScores:
    time = f", {row['scored_at']:%Y-%m-%d %H:%M}" if row["scored_at"] else ""
    title = f"in the output, by {row['model'] or 'a model'}{time}"
    lines = [] if row["status"] == Status.OK else [f"{row['status']}: {row['error'] or ''}"]
    if row["status"] == Status.OK and row["label"] is None:
        lines.append("an embedding and no label (--no-labels)")
    else:
        lines += _windows(row["segments"] or [])
    if row["num_rows"] > 1:
        lines.append(f"the last of its {row['num_rows']} rows there, which are of other models, views or spans")
    top_k = [(one["label"], one["score"]) for one in (row["top_k"] or [])[:most]]
    return ShownScores(title=title, top_k=top_k, lines=lines)


def _windows(segments: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{seconds(one['start_seconds'])} to {seconds(one['end_seconds'])}: {one['label']} {one['score']:.2f}"
        for one in segments[:_MAX_WINDOWS]
    ]
    left = len(segments) - _MAX_WINDOWS
    return [*lines, f"… {left:,} more windows"] if left > 0 else lines


def _facts_of_row(row: dict[str, Any]) -> str:
    return format_bytes(row["size_bytes"]) if row["size_bytes"] is not None else ""


def following(config: ShowConfig) -> str:
    """What to type next."""
    video = shlex.quote(public_uri(config.video))
    if config.model is not None:
        return f"vidray score --source {video} --model {shlex.quote(config.model)} --output SCORES"
    return f"vidray show {video} --model MODEL"
