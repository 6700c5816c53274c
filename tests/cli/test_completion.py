"""Shells complete commands, flags, and the words behind flags."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vidray.cli.main import main


def script(shell: str, capsys) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected", "unexpected"),
    [
        ("vidray sc", {"score"}, {"train"}),
        ("vidray score --max", {"--max-failure-rate", "--max-attempts", "--max-pixels"}, {"--output"}),
        ("vidray train --recipe ", {"guide", "videomae"}, {"local"}),
        ("vidray score --runner l", {"local"}, {"ray"}),
    ],
)
def test_bash_completes(line, expected, unexpected, capsys):
    words = line.split(" ")
    setup = f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; _vidray"
    code = f'{script("bash", capsys)}\n{setup}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) >= expected
    assert not set(done.stdout.split()) & unexpected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_script(shell, capsys):
    text = script(shell, capsys)
    assert "--recipe" in text or "-l recipe" in text
    if not (path := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed")
    subprocess.run([path, "-n"], input=text, text=True, check=True)


def test_help_says_what_to_do_with_it(capsys):
    assert main(["completion", "--help"]) == 0
    assert "source <(vidray completion bash)" in capsys.readouterr().out


def test_another_shell_is_refused(capsys):
    assert main(["completion", "csh"]) == 2
    assert "got 'csh', allowed are bash, zsh, fish" in capsys.readouterr().err
