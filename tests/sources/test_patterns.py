"""Which names count as videos, and which folders a glob enters."""

from __future__ import annotations

import pytest

from vidray.sources.patterns import VIDEO_EXTENSIONS, GlobMatches, VideosOnly


def test_every_video_extension_counts_in_any_case() -> None:
    for extension in VIDEO_EXTENSIONS:
        assert VideosOnly().keeps(f"x/y{extension}")
        assert VideosOnly().keeps(f"y{extension.upper()}")
    assert not VideosOnly().keeps("mp4")


@pytest.mark.parametrize(
    ("pattern", "folder", "enters"),
    [
        ("a/*/c.mp4", "a", True),
        ("a/*/c.mp4", "b", False),
        ("a/*/c.mp4", "a/x", True),
        ("a/*/c.mp4", "a/x/y", False),
        ("a/**/c.mp4", "a/x/y", True),
        ("a/**/c.mp4", "b/x/y", True),  # never asked: b is not entered
        ("a/**/c.mp4", "b", False),
        ("*.mp4", "a", False),
    ],
)
def test_only_folders_on_the_way_are_entered(pattern: str, folder: str, enters: bool) -> None:
    assert GlobMatches(pattern).enters(folder) is enters
