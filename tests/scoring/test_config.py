"""Flags and config file are one definition, and what is wrong is said at once."""

from __future__ import annotations

import dataclasses

import pytest

from vidray.cli.main import main, parse
from vidray.cli.preview import PreviewConfig
from vidray.errors import UsageError
from vidray.flags import config_file_arguments, parse_pool, parse_views
from vidray.scoring.config import ScoreConfig
from vidray.training.config import EvaluateConfig, TrainConfig
from vidray.types import ViewConfig

REQUIRED = ["--source", "s", "--model", "m", "--output", "o"]


@pytest.mark.parametrize(
    ("text", "views"), [("5x3", (5, 3)), ("1x1", (1, 1)), ("16x1", (16, 1)), ("0x1", None), ("5x2", None), ("5", None)]
)
def test_views_are_clips_times_crops(text, views):
    assert parse_views(text) == views


@pytest.mark.parametrize(("text", "pool"), [("4", (4, 4)), ("1:8", (1, 8)), ("8:1", None), ("0", None), ("", None)])
def test_a_pool_is_a_number_or_a_range(text, pool):
    assert parse_pool(text) == pool


def test_what_is_not_asked_for_comes_from_the_checkpoint():
    view = ViewConfig(num_frames=16, size=224, stride=2, num_clips=3, num_crops=3, aggregation="score")
    config = parse(ScoreConfig, REQUIRED, prog="vidray score")
    assert config.effective_view(view) == view
    asked = parse(ScoreConfig, [*REQUIRED, "--views", "1x1", "--span", "full"], prog="vidray score")
    assert asked.effective_view(view) == ViewConfig(
        num_frames=16, size=224, stride=2, num_clips=1, num_crops=1, span="full", aggregation="score"
    )


PIXEL_FLAGS = ["--square-pixels", "--video-stream", "first"]
SQUARED = {"square_pixels": True, "video_stream": "first"}


def test_square_pixels_and_the_first_stream_are_part_of_the_view_wherever_they_are_asked_for():
    """Train, evaluate, score and preview; and where they are not asked for, result keys stay what they were."""
    view = ViewConfig(num_frames=16, size=224)
    squared = dataclasses.replace(view, **SQUARED)
    assert parse(ScoreConfig, [*REQUIRED, *PIXEL_FLAGS], prog="vidray score").effective_view(view) == squared
    places = REQUIRED[:4]
    training = parse(TrainConfig, [*places, "--output", "o", *PIXEL_FLAGS], prog="vidray train")
    evaluation = parse(EvaluateConfig, [*places, *PIXEL_FLAGS], prog="vidray evaluate")
    previewing = parse(PreviewConfig, [*places, *PIXEL_FLAGS], prog="vidray preview").train_config
    for config in (training, evaluation, previewing):
        assert config.view(view).to_dict() == {**config.view(view).to_dict(), **SQUARED}
    assert parse(ScoreConfig, REQUIRED, prog="vidray score").effective_view(squared) == squared
    assert not SQUARED.keys() & view.to_dict().keys()
    assert ViewConfig.from_dict(squared.to_dict()) == squared


def test_a_source_may_be_given_often():
    config = parse(ScoreConfig, [*REQUIRED, "--source", "t"], prog="vidray score")
    assert config.source == ("s", "t")


def test_every_value_of_a_config_file_goes_through_the_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "source: [a, b c]\nmodel: m\noutput: o\nmax_pixels: 100\nretry-failed: true\ncompile: false\nviews:\n"
    )
    config = parse(ScoreConfig, ["--config", str(path), "--top-k=3"], prog="vidray score")
    assert config.source == ("a", "b c")
    assert (config.limits.max_pixels, config.retry_failed, config.compile, config.top_k) == (100, True, False, 3)


def test_a_closed_sandbox_may_be_required():
    assert not parse(ScoreConfig, REQUIRED, prog="vidray score").limits.require_sandbox
    assert parse(ScoreConfig, [*REQUIRED, "--require-sandbox"], prog="vidray score").limits.require_sandbox


def test_what_is_typed_wins_over_the_file():
    assert config_file_arguments({"views": "5x3", "compile": True}, given={"--views", "--no-compile"}) == []


def test_a_nested_config_file_is_refused():
    with pytest.raises(UsageError, match="limits"):
        config_file_arguments({"limits": {"max_pixels": 3}}, given=set())


@pytest.mark.parametrize("argv", [["--help"], ["score", "--help"], ["--version"]])
def test_help_can_be_read(argv, capsys):
    try:
        code = main(argv)
    except SystemExit as exit:
        code = exit.code
    assert code == 0
    text = capsys.readouterr().out
    assert "vidray" in text
    if argv == ["score", "--help"]:
        for name in ScoreConfig.__dataclass_fields__:
            if name != "limits":
                assert f"--{name.replace('_', '-')}" in text


def test_an_unknown_command_names_those_there_are(capsys):
    assert main(["scroe"]) == 2
    assert "score" in capsys.readouterr().err
