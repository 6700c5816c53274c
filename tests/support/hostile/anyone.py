"""Runs a command as an ordinary user: as ours, unless that is root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_NOBODY = "65534"
_SCRIPT = """
set -e
if [ -n "$CLOSED" ]; then  # Python lies in a folder of root's: here, and only here, others may pass it
    mount --bind "$PYTHON" "$BESIDE"
    mount -t tmpfs -o mode=755 none "$CLOSED"
    mkdir -p "$PYTHON"
    mount --bind "$BESIDE" "$PYTHON"
fi
exec setpriv --reuid NOBODY --regid NOBODY --clear-groups "$@"
""".replace("NOBODY", _NOBODY)


def run_as_ordinary_user(command: list[str], *, beside: Path, **how: object) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with captured text. Root needs setpriv(1) and mount namespaces for it.

    Args:
        beside: an empty folder.
    """
    environment = {**os.environ, "CLOSED": _closed_folder(), "PYTHON": sys.base_prefix, "BESIDE": str(beside)}
    if os.geteuid() == 0:
        shell = ["sh", "-c", _SCRIPT, "sh", *command]
        command = ["unshare", "--mount", "--propagation", "private", *shell] if environment["CLOSED"] else shell
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **how)  # type: ignore[call-overload]


def _closed_folder() -> str:
    """The first folder on the way to Python's own that others may not pass; empty if there is none."""
    prefix = Path(sys.base_prefix)
    return next((str(p) for p in [*reversed(prefix.parents), prefix] if not p.stat().st_mode & 0o001), "")
