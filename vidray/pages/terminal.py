"""One video as lines for a terminal: frames in coloured half blocks, bars, text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

import numpy as np

from vidray.pages.shown import MAX_FRAMES, ShownClip, ShownScores, ShownVideo, some_frames
from vidray.pages.words import seconds, short, visible

_MIN_FRAME_WIDTH = 16
"""Characters. Narrower ones show nothing: fewer are drawn instead."""
_MAX_FRAME_WIDTH = 32
_MAX_BAR = 40
_MAX_LABEL = 32


def shows_colours(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """True if a stream is a terminal that says that it shows colours of 24 bits, and nobody asked for none
    (https://no-color.org)."""
    says_so = environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") or "direct" in environ.get("TERM", "")
    return stream.isatty() and says_so and not environ.get("NO_COLOR")


def format_video(video: ShownVideo, *, width: int, has_colours: bool) -> str:
    """Lines of at most ``width`` characters; without colours the frames are left out, and their times stay."""
    sections = [[_plain(text, width) for text in (video.title, video.facts, video.problem)]]
    sections += [_clip(clip, video.aspect, width, has_colours=has_colours) for clip in video.clips]
    sections += [_scores(scores, width) for scores in video.scores]
    return "\n\n".join("\n".join(line for line in lines if line) for lines in sections)


def _plain(text: str, width: int) -> str:
    return short(visible(text), width)


def _clip(clip: ShownClip, aspect: float, width: int, *, has_colours: bool) -> list[str]:
    most = max(1, min(MAX_FRAMES, (width + 1) // (_MIN_FRAME_WIDTH + 1))) if has_colours else MAX_FRAMES
    frames = some_frames(clip, most)
    times = [seconds(time) for _, time in frames if time is not None]
    if not has_colours:
        return [_plain(clip.title, width), textwrap.fill(f"frames at {', '.join(times)}", width) if times else ""]
    wide = max(1, min(_MAX_FRAME_WIDTH, (width + 1) // len(frames) - 1))
    pictures = [half_blocks(frame, width=wide, aspect=aspect) for frame, _ in frames]
    rows = [" ".join(row) for row in zip(*pictures, strict=True)]
    return [_plain(clip.title, width), *rows, " ".join(f"{time:<{wide}}" for time in times).rstrip()]


def half_blocks(frame_HWC: np.ndarray, *, width: int, aspect: float) -> list[str]:
    """A frame as lines of ``width`` characters, each of two pixels: the upper is the block, the lower its ground."""
    from PIL import Image

    num_lines = max(1, round(width / aspect / 2))
    pixels = np.asarray(Image.fromarray(frame_HWC).resize((width, 2 * num_lines), Image.Resampling.BOX)).tolist()
    return [_line(*pixels[at : at + 2]) for at in range(0, 2 * num_lines, 2)]


def _line(upper: Sequence[Sequence[int]], lower: Sequence[Sequence[int]]) -> str:
    blocks = [f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m▀" for a, b in zip(upper, lower, strict=True)]
    return "".join(blocks) + "\x1b[0m"


def _scores(scores: ShownScores, width: int) -> list[str]:
    labels = [_plain(label, _MAX_LABEL) for label, _ in scores.top_k]
    wide = max(map(len, labels), default=0)
    longest = min(_MAX_BAR, max(width - wide - len(" 0.00 "), 1))
    bars = [round(longest * min(max(score, 0.0), 1.0)) for _, score in scores.top_k]
    lines = [
        f"{label:<{wide}} {score:.2f} {'█' * bar}".rstrip()
        for label, bar, (_, score) in zip(labels, bars, scores.top_k, strict=True)
    ]
    return [_plain(scores.title, width), *lines, *(_plain(line, width) for line in scores.lines)]
