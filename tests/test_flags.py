"""What is mistyped is named, with what was meant and where it stands."""

from __future__ import annotations

from typing import Literal

import pytest

from vidray.cli.main import main, parse
from vidray.errors import UsageError
from vidray.flags import with_known_spelling
from vidray.scoring.config import ScoreConfig

PLACES = ["--source", "a", "--model", "b", "--output", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sorce", "a"], r"got --sorce, which is no flag; the nearest: --source"),
        (["--xyzzy"], r"got --xyzzy, which is no flag; vidray score --help lists all"),
        (["--rows-per-part", "abc"], r"--rows-per-part: got 'abc', allowed is a whole number"),
        (["--max-pixels=3.5"], r"--max-pixels: got '3.5', allowed is a whole number"),
        (["--max_failure_rate", "half"], r"--max-failure-rate: got 'half', allowed is a number"),
    ],
)
def test_a_mistyped_flag_is_one_line(arguments, message, capsys):
    with pytest.raises(UsageError, match=message):
        parse(ScoreConfig, [*PLACES, *arguments], prog="vidray score")
    assert main(["score", *PLACES, *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_mistyped_name_in_a_file_is_told_with_its_line(tmp_path):
    path = tmp_path / "nightly.yaml"
    path.write_text("views: 1x1\n\nrows_per_pard: 5\n")
    with pytest.raises(UsageError, match=r"nightly.yaml, line 3: got --rows-per-pard, .* nearest: --rows-per-part"):
        parse(ScoreConfig, [*PLACES, "--config", str(path)], prog="vidray score")
    path.write_text("rows_per_part: many\n")
    with pytest.raises(UsageError, match=r"nightly.yaml, line 1: --rows-per-part: got 'many'"):
        parse(ScoreConfig, [*PLACES, "--config", str(path)], prog="vidray score")


@pytest.mark.parametrize("value", [["--family", "movinet"], ["--family=MOVINET"]])
def test_choices_are_taken_in_any_case(value, capsys):
    assert main(["models", *value]) == 0
    assert "VideoMAE" not in capsys.readouterr().out


def test_other_values_keep_their_case():
    flags = {"--model": str, "--kind": Literal["Fast"] | None}
    assert with_known_spelling(["--model", "FAST", "--kind", "FAST"], flags) == ["--model", "FAST", "--kind", "Fast"]
