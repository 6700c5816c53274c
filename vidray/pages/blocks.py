"""What a page is made of, as plain values. ``page.html.jinja`` draws them, and escapes every string in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Tone = Literal["", "good", "warn", "bad"]
"""How a thing is to be taken. It is always said in words too: colour alone reaches not everybody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A number worth a glance."""

    name: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Numbers side by side."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A cell that is a bar with its number."""

    share: float
    """From 0 to 1."""
    text: str
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """A cell that is a small histogram."""

    shares: Sequence[float]
    """Heights from 0 to 1, from left to right."""
    text: str
    """What it shows, for those who do not see it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """A cell with a word to type or to search for, such as a URI."""

    text: str


Cell = str | int | float | Bar | Histogram | Code
"""Integers are written with separators, floats with three decimals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows, of which the first cell names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    more: Sequence[Sequence[Cell]] = ()
    """Further rows, shown when they are asked for."""
    more_title: str = "more"


@dataclass(frozen=True, kw_only=True, slots=True)
class Heat:
    """A matrix as a table whose cells are coloured by their share: for few classes."""

    kind: ClassVar[str] = "heat"
    caption: str
    rows_are: str
    columns_are: str
    names: Sequence[str]
    shares: Sequence[Sequence[float]]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image, or a chart of `vidray.pages.charts`."""

    title: str
    alt: str
    svg: str = ""
    """Markup of ours, put in as it is; else there is ``src``."""
    src: str = ""
    """A data URI."""
    note: str = ""
    rows_are: str = ""
    """Of a matrix: what goes down."""
    columns_are: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Charts side by side, on a phone below each other."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A part of a video with one label."""

    start_seconds: float
    end_seconds: float
    label: str
    score: float
    number: int
    """Which colour: the same label has the same within a card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """Frames of a video from left to right."""

    frames: Sequence[str] = ()
    """Data URIs."""
    times: Sequence[str] = ()
    """One for each frame."""
    problem: str = ""
    """Why there are no frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A video: its frames, what the model says about it, and when."""

    title: str
    uri: str
    strip: Strip
    facts: Sequence[str] = ()
    top_k: Sequence[Bar] = ()
    spans: Sequence[Span] = ()
    duration_seconds: float = 0.0
    spans_title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cards:
    """Videos."""

    kind: ClassVar[str] = "cards"
    title: str
    note: str = ""
    cards: Sequence[Card]


Block = Figures | Text | Table | Heat | Pictures | Cards


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    text: str = ""
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A report."""

    title: str
    subtitle: str = ""
    verdict: str
    """The answer, in a sentence or two."""
    tone: Tone = ""
    figures: Sequence[Figure] = ()
    sections: Sequence[Section]
    facts: Sequence[tuple[str, Any]] = field(default=())
    """Names and values for the end of the page: where it comes from."""
