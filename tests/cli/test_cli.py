"""How a command ends: with a code that scripts can rely on, and never in silence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import runs
from vidray.cli import main as cli
from vidray.errors import RunError, TooManyFailuresError, UsageError


def ends_with(*errors: BaseException):
    """A command in which the first error is raised, the next while that is handled, and so on."""

    def command() -> int:
        try:
            raise errors[0]
        finally:
            if errors[1:]:
                ends_with(*errors[1:])()

    return command


@pytest.mark.parametrize("after", [(), (BrokenPipeError(),), (OSError("no raylet"), RunError("nor this"))])
def test_ctrl_c_is_130_whatever_breaks_on_the_way_out(after, capsys):
    assert cli._guarded(ends_with(KeyboardInterrupt(), *after)) == 130
    assert "nothing is broken" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(RunError("x"), 1), (UsageError("x"), 2), (TooManyFailuresError("x"), 3)])
def test_what_a_user_can_cause_has_a_message_and_a_code(error, code, capsys):
    assert cli._guarded(ends_with(error)) == code
    assert capsys.readouterr().err == "vidray: x\n"


def test_a_broken_pipe_that_is_not_our_output_is_not_passed_over_in_silence():
    with pytest.raises(BrokenPipeError):
        cli._guarded(ends_with(BrokenPipeError("a store's")))


def test_a_reader_that_goes_away_early_is_no_error_worth_a_traceback():
    script = (
        "import sys; from vidray.cli import main as cli; "
        "sys.exit(cli._guarded(lambda: [print('y' * 9999) for _ in range(99)]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=runs.ROOT
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(60) == 1
