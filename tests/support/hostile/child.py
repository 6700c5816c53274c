"""The sandbox's child with a decoder that does what its "video" says: JSON of the name of a try, and its targets."""

from __future__ import annotations

import errno
import json

import numpy as np

from tests.support.hostile.tries import TRIES, Targets
from vidray.errors import VideoError
from vidray.sandbox import child
from vidray.types import Status, VideoInfo, ViewConfig


def main(*, control_fd: int, input_fd: int, output_fd: int) -> None:
    """The real child's loop around it."""
    import encodings.idna  # noqa: F401, what the tries need of Python, which could not be imported later

    import vidray.video.views  # noqa: F401, what a decoder brings into the process

    fds = {"control_fd": control_fd, "input_fd": input_fd, "output_fd": output_fd}

    def decode(data: bytes, *, view: ViewConfig, **_: object) -> tuple[np.ndarray, VideoInfo]:
        name, targets = json.loads(data)
        raise VideoError(Status.UNSUPPORTED, outcome(name, Targets(**targets, **fds)))

    child.main(**fds, decode=decode, stream=lambda *_, **__: iter(()))


def outcome(name: str, targets: Targets) -> str:
    """``done``, or the name of the error that a try ended with."""
    try:
        TRIES[name](targets)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except ValueError:  # how Python says that a limit may not be raised
        return "EPERM"
    except (MemoryError, RuntimeError) as error:
        return type(error).__name__
    return "done"
