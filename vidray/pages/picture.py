"""Pictures with words in them, drawn by Pillow: one video as a PNG, and what `vidray preview` needs for its sheets."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

from vidray.pages.shown import ShownClip, ShownScores, ShownVideo, some_frames
from vidray.pages.words import seconds, short, visible

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

_GROUND, _INK = (24, 24, 24), (230, 230, 230)
_SOFT, _ACCENT = (150, 150, 150), (92, 148, 240)
_MARGIN, _GAP = 16, 6
_FRAME_HEIGHT = 144
_LABEL_WIDTH, _BAR_WIDTH = 200, 320
_MIN_WIDTH = 2 * _MARGIN + _LABEL_WIDTH + _BAR_WIDTH + 80
_MAX_TEXT = 400
"""Characters: more fit into no line."""
_LINE = 1.5
"""Height of a line by the size of its letters."""


def new_picture(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty one, and what draws on it."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), _GROUND)
    return picture, ImageDraw.Draw(picture)


def write_text(
    draw: ImageDraw.ImageDraw,
    text: str,
    at: tuple[int, int],
    *,
    size: int,
    width: int,
    fill: tuple[int, int, int] = _INK,
) -> None:
    """Words from a corner (x, y) on, cut at the right where they would be wider than ``width`` pixels."""
    letters, text = _font(size), short(visible(text), _MAX_TEXT)
    if letters.getlength(text) > width:
        while text and letters.getlength(f"{text}…") > width:
            text = text[:-1]
        text += "…"
    draw.text(at, text, fill=fill, font=letters)


def encoded(picture: Image.Image, **options: Any) -> bytes:
    """The file; ``options`` are those of Pillow's ``save``."""
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Pillow's own has Latin letters only."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def video_picture(video: ShownVideo) -> bytes:
    """A PNG: title and facts, a strip for each clip with the frames' times, bars of the best labels."""
    wide = max(1, round(_FRAME_HEIGHT * video.aspect))
    most = max((len(some_frames(clip)) for clip in video.clips), default=0)
    width = max(2 * _MARGIN + most * (wide + _GAP) - _GAP, _MIN_WIDTH)
    measured = _Sheet(1, 1)
    _fill(measured, video, wide)
    sheet = _Sheet(width, measured.y + _MARGIN)
    _fill(sheet, video, wide)
    return encoded(sheet.picture, format="PNG", optimize=True)


def _fill(sheet: _Sheet, video: ShownVideo, frame_width: int) -> None:
    sheet.write(video.title, size=20)
    sheet.write(video.facts, size=13, fill=_SOFT)
    if video.problem:
        sheet.write(video.problem, size=13)
    for clip in video.clips:
        sheet.space()
        sheet.draw_clip(clip, size=(frame_width, _FRAME_HEIGHT))
    for scores in video.scores:
        sheet.space()
        sheet.draw_scores(scores)


class _Sheet:
    """A picture that is filled from the top."""

    def __init__(self, width: int, height: int) -> None:
        self.picture, self._draw = new_picture(width, height)
        self.y = _MARGIN
        """Where the next line begins."""

    def space(self) -> None:
        self.y += _MARGIN

    def write(self, text: str, *, size: int, fill: tuple[int, int, int] = _INK) -> None:
        self._put(text, _MARGIN, size=size, width=self.picture.width - 2 * _MARGIN, fill=fill)
        self.y += round(size * _LINE)

    def draw_clip(self, clip: ShownClip, *, size: tuple[int, int]) -> None:
        from PIL import Image

        if clip.title:
            self.write(clip.title, size=13)
        for number, (frame_HWC, time) in enumerate(some_frames(clip)):
            x = _MARGIN + number * (size[0] + _GAP)
            self.picture.paste(Image.fromarray(frame_HWC).resize(size, Image.Resampling.LANCZOS), (x, self.y))
            if time is not None:
                draw_at = (x, self.y + size[1] + 3)
                write_text(self._draw, seconds(time), draw_at, size=11, width=size[0], fill=_SOFT)
        self.y += size[1] + 3 + round(11 * _LINE)

    def draw_scores(self, scores: ShownScores) -> None:
        self.write(scores.title, size=13, fill=_SOFT)
        for label, score in scores.top_k:
            left, bar = _MARGIN + _LABEL_WIDTH, round(_BAR_WIDTH * min(max(score, 0.0), 1.0))
            self._put(label, _MARGIN, size=13, width=_LABEL_WIDTH - _GAP)
            self._draw.rectangle((left, self.y + 2, left + max(bar, 1), self.y + 15), fill=_ACCENT)
            self._put(f"{score:.2f}", left + max(bar, 1) + _GAP, size=13, width=80)
            self.y += round(13 * _LINE)
        for line in scores.lines:
            self.write(line, size=13)

    def _put(self, text: str, x: int, *, size: int, width: int, fill: tuple[int, int, int] = _INK) -> None:
        write_text(self._draw, text, (x, self.y), size=size, width=width, fill=fill)
