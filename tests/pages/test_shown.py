"""A video that is drawn in a terminal or as a picture looks like itself, and its strings do no harm."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.pages.test_page import HOSTILE, LONG
from vidray.pages.picture import video_picture
from vidray.pages.shown import ShownClip, ShownScores, ShownVideo, some_frames
from vidray.pages.terminal import format_video, half_blocks, shows_colours


def shown(**more) -> ShownVideo:
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    frames[:, :16, :, 0] = 200
    frames[:, 16:, :, 2] = np.arange(16, dtype=np.uint8)[:, None, None] * 10
    clip = ShownClip(title="clip 1", frames=frames, times=[number / 10 for number in range(16)])
    scores = ShownScores(title="by m", top_k=[("run", 0.75), ("jump", 0.25)])
    values = {"title": "a.mp4", "facts": "1.6 s", "aspect": 1.0, "clips": [clip], "scores": [scores]}
    return ShownVideo(**values | more)


def test_the_first_and_the_last_frame_are_among_those_that_are_drawn():
    (clip,) = shown().clips
    assert [time for _, time in some_frames(clip, 3)] == [0.0, 0.8, 1.5]
    assert len(some_frames(clip, 100)) == 16
    assert [time for _, time in some_frames(clip, 1)] == [0.0]


def test_half_blocks_are_the_pixels():
    lines = half_blocks(shown().clips[0].frames[15], width=8, aspect=1.0)
    assert len(lines) == 4
    found = [re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line) for line in lines]
    pixels = np.array(found, int).reshape(4, 8, 2, 3).transpose(0, 2, 1, 3).reshape(8, 8, 3)
    assert (pixels[:4] == [200, 0, 0]).all()
    assert (pixels[4:] == [0, 0, 150]).all()
    assert all(line.endswith("\x1b[0m") for line in lines)


@pytest.mark.parametrize("width", [1, 17, 40, 80, 300])
def test_no_line_is_wider_than_the_terminal(width):
    text = format_video(shown(), width=width, has_colours=True)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in text.splitlines()]
    assert max(len(line) for line in lines if "▀" in line) <= width
    assert text.count("▀")


def test_bars_are_as_long_as_the_scores():
    text = format_video(shown(), width=80, has_colours=False)
    assert "run  0.75 " + "█" * 30 in text.splitlines()
    assert "jump 0.25 " + "█" * 10 in text.splitlines()


def test_colours_need_a_terminal_that_says_so():
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert shows_colours(Screen(), {"COLORTERM": "truecolor"})
    assert shows_colours(Screen(), {"TERM": "xterm-direct"})
    assert not shows_colours(Screen(), {"TERM": "xterm-256color"})
    assert not shows_colours(Screen(), {"COLORTERM": "24bit", "NO_COLOR": "1"})
    assert not shows_colours(io.StringIO(), {"COLORTERM": "truecolor"})


def test_a_picture_has_the_frames_in_a_row_and_bars_below():
    picture = np.asarray(Image.open(io.BytesIO(video_picture(shown()))))
    reds = (picture == [200, 0, 0]).all(axis=2)
    assert reds.any(axis=1).sum() in range(55, 73)  # the upper half of 144 pixels, but for its edge, which is smoothed
    assert np.diff(reds.any(axis=0).astype(int)).tolist().count(1) == 8
    bars = (picture == [92, 148, 240]).all(axis=2)
    lengths = sorted({int(length) for length in bars.sum(axis=1) if length})
    assert lengths == [81, 241]  # both ends included


def test_strings_from_outside_do_no_harm():
    scores = ShownScores(title=HOSTILE, top_k=[(HOSTILE, 0.5), (LONG, -0.5), ("ü", 1.5)], lines=[HOSTILE, LONG])
    video = shown(title=HOSTILE, problem=LONG, scores=[scores], aspect=3.0)
    text = format_video(video, width=80, has_colours=False)
    assert not set(text) & {"\u202e", "\x00", "\x1b"}
    assert max(map(len, text.splitlines())) <= 80
    Image.open(io.BytesIO(video_picture(video))).verify()
