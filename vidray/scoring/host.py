"""A predictor in a process of its own, begun before Ray is: on one machine the network loads while Ray starts.

::

    driver  ── starts ──>  host: loads the network, then listens
    actor   ── views in shared memory ──>  host  ── scores ──>  actor

Imports and weights take two seconds of CPU, and Ray leaves a core idle while it starts. Nothing depends on a host:
where there is none, or when it dies, an actor loads the network itself, as it does on clusters.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Client, Connection
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vidray.cluster import named_cluster
from vidray.cpu_tuning import ENVIRONMENT
from vidray.errors import UsageError

if TYPE_CHECKING:
    from vidray.types import Scores

_GPUS = ("/dev/nvidiactl", "/dev/kfd")
"""What the drivers of NVIDIA's and AMD's GPUs leave behind."""


class Predicts(Protocol):
    """What a `Predictor` and a `HostedPredictor` have in common."""

    def predict(self, views: Sequence[np.ndarray]) -> list[Scores]:
        """See ``Predictor.predict``."""


class Host:
    """Starts the process, without waiting for it. It ends with ``close``, and with this process however that ends.

    Args:
        settings: arguments of ``Predictor``, which are pickled.
    """

    def __init__(self, **settings: Any) -> None:
        self._folder = tempfile.mkdtemp(prefix="vidray-host-", dir=_short_folder())  # nobody else may enter it
        self.address = os.path.join(self._folder, "socket")
        paths = [os.path.abspath(path) for path in sys.path]
        # Listened to from now on, by the process alone: who calls early waits, and is told when it has died.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vidray.scoring.host", str(listener.fileno()), self._folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # an actor meets the same error, and says so
                env={**ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the driver
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(settings, self._process.stdin)
            self._process.stdin.flush()  # and stays open: its end is the sign that this process is gone

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Kill it. May be called again."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _short_folder() -> str | None:
    """Where the socket can be: its path has room for 107 bytes. None: where temporary files go anyway."""
    return None if len(os.fsencode(tempfile.gettempdir())) < 80 else "/tmp"


def is_useful(*, device: str, ray_address: str | None) -> bool:
    """True if Ray will be started on this machine, and the network will run on its CPUs."""
    ray = sys.modules.get("ray")
    is_connected = ray is not None and ray.is_initialized()
    on_cpu = device == "cpu" or (device == "auto" and not any(map(os.path.exists, _GPUS)))
    return on_cpu and named_cluster(ray_address) in (None, "local") and not is_connected


class HostedPredictor:
    """The predictor of a host, as if it were here. Any thread may use it; each has a connection of its own.

    Args:
        address: of the host.
        make_own: makes a predictor in this process if the host is not there, or is lost.

    Raises:
        UsageError: the host could not make its predictor.
    """

    def __init__(self, address: str, *, make_own: Callable[[], Predicts]) -> None:
        self._address, self._make_own = address, make_own
        self._lines = threading.local()
        self._own: Predicts | None = None
        self._making = threading.Lock()
        try:
            self._line()
        except UsageError:
            raise
        except Exception:  # it died, or failed in a way that another attempt, here, may not
            self._replace()

    def predict(self, views: Sequence[np.ndarray]) -> list[Scores]:
        """See ``Predictor.predict``."""
        if self._own is None:
            try:
                return self._line().predict(views)
            except (OSError, EOFError):
                self._lines.__dict__.clear()  # and the memory with it
                self._replace()
        assert self._own is not None
        return self._own.predict(views)

    def _line(self) -> _Line:
        if not hasattr(self._lines, "own"):
            self._lines.own = _Line(self._address)
        line: _Line = self._lines.own
        return line

    def _replace(self) -> None:
        with self._making:
            if self._own is None:
                self._own = self._make_own()


class _Line:
    """One connection to a host, and the memory in which it finds the views."""

    def __init__(self, address: str) -> None:
        self._connection: Connection = Client(address, family="AF_UNIX")
        self._answer()
        self._connection.send(("nice", os.getpriority(os.PRIO_PROCESS, 0)))
        self._memory = mmap.mmap(-1, 1)

    def predict(self, views: Sequence[np.ndarray]) -> list[Scores]:
        num_bytes = sum(view.nbytes for view in views)
        if num_bytes > len(self._memory):
            self._share(num_bytes)
        start = 0
        for view in views:
            np.copyto(np.frombuffer(self._memory, np.uint8, view.nbytes, start).reshape(view.shape), view)
            start += view.nbytes
        self._connection.send(("predict", [view.shape for view in views]))
        scores: list[Scores] = self._answer()
        return scores

    def _share(self, num_bytes: int) -> None:
        """Memory for so much, which the host sees too."""
        fd = os.memfd_create("vidray-host-views")
        try:
            os.ftruncate(fd, num_bytes)
            self._memory = mmap.mmap(fd, num_bytes)
            self._connection.send(("share", num_bytes))
            reduction.send_handle(self._connection, fd, None)
        finally:
            os.close(fd)

    def _answer(self) -> Any:
        result = self._connection.recv()
        if isinstance(result, BaseException):
            raise result
        return result


def main() -> None:
    """The process: ``python -m vidray.scoring.host FD FOLDER``. Its pickled settings are on standard input."""
    settings = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    predictor = _make(settings)
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        while True:
            connection = Connection(listener.accept()[0].detach())
            threading.Thread(target=_serve, args=(connection, predictor), daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    os._exit(0)


def _make(settings: dict[str, Any]) -> Any:
    """The predictor, or why there is none."""
    from vidray.scoring.predictor import Predictor

    try:
        return Predictor(**settings)
    except Exception as error:
        return error


def _serve(connection: Connection, predictor: Any) -> None:
    """One connection until its other end is gone."""
    with connection, contextlib.suppress(OSError, EOFError):
        if isinstance(predictor, Exception):
            connection.send(predictor)
            return
        connection.send(None)
        memory = mmap.mmap(-1, 1)
        while True:
            what, value = connection.recv()
            if what == "nice":
                # As urgent as the actor that asks, which Ray makes less urgent than the driver, and the decoders with
                # it: more urgent than they are, the network would leave them no time and then have nothing to do.
                with contextlib.suppress(PermissionError):
                    os.setpriority(os.PRIO_PGRP, 0, value)  # all threads; PRIO_PROCESS is this one alone
            elif what == "share":
                fd = reduction.recv_handle(connection)
                memory = mmap.mmap(fd, value)
                os.close(fd)
            else:
                connection.send(_predict(predictor, memory, value))


def _predict(predictor: Predicts, memory: mmap.mmap, shapes: list[tuple[int, ...]]) -> Any:
    views, start = [], 0
    for shape in shapes:
        views.append(np.frombuffer(memory, np.uint8, int(np.prod(shape)), start).reshape(shape))
        start += views[-1].nbytes
    try:
        return predictor.predict(views)
    except Exception as error:
        return error


if __name__ == "__main__":
    main()
