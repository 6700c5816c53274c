"""The wrapper of a scheduler's command starts again after code 1, and after no other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import runs
from vidray.errors import EXIT_CODES

SCRIPT = runs.ROOT / "cluster/restart.sh"
SHELLS = [name for name in ("dash", "bash") if shutil.which(name)]

pytestmark = pytest.mark.parametrize("shell", SHELLS)


def restarted(shell: str, times: int, command: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shell, str(SCRIPT), str(times), "0", str(command)], capture_output=True, text=True, timeout=60, check=False
    )


def fake(path: Path, body: str) -> Path:
    """A command that counts in ``path``.count how often it was started; ``$n`` is the count."""
    path.write_text(f"#!/bin/sh\necho x >> {path}.count\nn=$(wc -l < {path}.count)\n{body}\n")
    path.chmod(0o755)
    return path


def starts(command: Path) -> int:
    return len(command.with_name(f"{command.name}.count").read_text().splitlines())


@pytest.mark.parametrize("code", [*EXIT_CODES, 137, 139])
def test_only_code_1_is_tried_again_and_the_last_code_is_the_wrappers(shell, code, tmp_path):
    command = fake(tmp_path / "command", f'echo "{{\\"exit_code\\": {code}}}"; exit {code}')
    done = restarted(shell, 2, command)
    assert done.returncode == code
    assert starts(command) == (3 if code == 1 else 1)
    assert done.stdout.splitlines()[-1] == f'{{"exit_code": {code}}}'
    assert ("restarts left" in done.stderr) == (code == 1)


def test_it_ends_with_the_first_code_that_is_not_1(shell, tmp_path):
    command = fake(tmp_path / "command", "[ $n -lt 3 ] && exit 1; echo verdict; exit 4")
    done = restarted(shell, 5, command)
    assert (done.returncode, starts(command), done.stdout) == (4, 3, "verdict\n")


def test_arguments_arrive_as_they_were(shell):
    show = ["-c", "import sys; print(sys.argv[1:])", "$SLACK_WEBHOOK", "a b", ""]
    done = subprocess.run(
        [shell, str(SCRIPT), "0", "0", sys.executable, *show], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "['$SLACK_WEBHOOK', 'a b', '']\n"


def test_a_stop_reaches_the_command_which_says_its_last_words_and_is_not_started_again(shell, tmp_path):
    body = "trap 'echo verdict; exit 1' TERM; echo started; while :; do sleep 0.1; done"
    command = fake(tmp_path / "command", body)
    process = subprocess.Popen([shell, str(SCRIPT), "5", "0", str(command)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "verdict\n"
    finally:
        process.kill()
    assert (process.returncode, starts(command)) == (1, 1)


def test_a_stop_during_the_pause_ends_it_at_once(shell, tmp_path):
    command = fake(tmp_path / "command", "exit 1")
    process = subprocess.Popen([shell, str(SCRIPT), "5", "3600", str(command)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "starts again in 3600 s" in process.stderr.readline()
        runs.wait_until(lambda: sleeps(process.pid), what="the pause")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert starts(command) == 1


def sleeps(pid: int) -> bool:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(os.path.basename(os.readlink(f"/proc/{child}/exe")) in ("sleep", "coreutils") for child in children)
