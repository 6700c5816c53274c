"""One video to look at, as plain values: `terminal.py` and `picture.py` draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_FRAMES = 8
"""Of a clip that are drawn: the first and the last, and some between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownClip:
    """Frames of one view."""

    title: str
    frames: np.ndarray
    """(T, H, W, 3) uint8."""
    times: Sequence[float]
    """(T,) seconds; () if they are not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownScores:
    """The best labels."""

    title: str
    top_k: Sequence[tuple[str, float]]
    """(label, score), best first."""
    lines: Sequence[str] = ()
    """What else there is to say; or why there is no score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownVideo:
    """A video, what is known of it, and what models made of it."""

    title: str
    facts: str
    aspect: float
    """Width of a frame by its height, as it is drawn."""
    clips: Sequence[ShownClip]
    scores: Sequence[ShownScores]
    problem: str = ""
    """Why there are no frames."""


def some_frames(clip: ShownClip, most: int = MAX_FRAMES) -> list[tuple[np.ndarray, float | None]]:
    """Frames of a clip with their times (None: not known), evenly chosen, the first and the last among them."""
    num_frames = len(clip.frames)
    chosen = np.unique(np.linspace(0, num_frames - 1, min(most, num_frames)).round().astype(int)).tolist()
    return [(clip.frames[at], clip.times[at] if len(clip.times) else None) for at in chosen]
