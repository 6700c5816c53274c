"""A sandbox's child as a process: how it is started with nothing of ours, how it is ended, and what ended it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

# The child finds its modules where the parent does, but runs none of the start-up hooks of an environment (-I, -S).
_BOOTSTRAP = (
    "import sys, json; name, arguments, sys.path[:] = sys.argv[1], *map(json.loads, sys.argv[2:]); "
    "import importlib; importlib.import_module(name).main(**arguments)"
)


def sealed_memory(num_bytes: int) -> int:
    """A memfd whose size nobody can change: a child that shrank it would kill the parent (SIGBUS) as it reads."""
    fd = os.memfd_create("vidray-views", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def spawn(module: str, fds: dict[str, int]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a child with nothing of ours but ``fds``. Returns it and what it writes to stderr."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # a child that talks too much loses words, not time
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOTSTRAP, module, json.dumps(fds), _module_path()],
            pass_fds=tuple(fds.values()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=write_fd,
            env=_clean_environment(),
            cwd="/",  # a relative path in a hostile file leads nowhere near ours
            umask=0o077,
            start_new_session=True,  # killed with all that it started; Ctrl-C is for the parent
        )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    return process, open(read_fd, "rb", buffering=0)


def lower_priority(pid: int, *, by: int) -> None:
    """Have the process that leads a session run where others leave the CPUs idle: ``by`` steps of nice(2)."""
    with contextlib.suppress(OSError):  # it is gone, or a limit forbids it: then it runs as others do
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + by))
    # Linux shares the CPUs among sessions first, as if each were one process: see sched(7), the autogroup feature.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(by))


def _module_path() -> str:
    """Where the child looks for modules, as JSON: where this process does (``""`` is the folder that it runs in)."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
    return json.dumps([*paths, root])


def _clean_environment() -> dict[str, str]:
    """Nothing of ours (credentials among it) but what finding shared libraries may need. Threads of numerical
    libraries would cost start-up time and address space, and nothing here uses them."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    library_path = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"LANG": "C.UTF-8", **threads, **library_path}


def await_exit(pid: int, *, seconds: float) -> int | None:
    """The exit code of a child, minus the signal's number if one killed it; None if it still runs after ``seconds``.

    The child stays unreaped, so that its process group cannot become another's before it is killed.
    """
    deadline = time.monotonic() + seconds
    while True:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if result is not None:
            return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the child with its group, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
