"""The real child, which notes what Python opens or imports once it is confined.

The "video" ``RECORD`` is answered with the notes, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from vidray.errors import VideoError
from vidray.sandbox import child
from vidray.types import Status, VideoInfo

RECORD = b"what did you open?"


def main(**fds: int) -> None:
    from vidray.video.views import decode_views

    notes: list[str] = []
    confine = child.confine

    def confine_and_record(**how: Any) -> Any:
        result = confine(**how)
        sys.addaudithook(_note_files(notes))
        return result

    def decode(data: bytes, **how: Any) -> tuple[np.ndarray, VideoInfo]:
        if data == RECORD:
            raise VideoError(Status.UNSUPPORTED, json.dumps(notes))
        return decode_views(data, **how)

    child.confine = confine_and_record
    child.main(**fds, decode=decode)


def _note_files(notes: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("import", "open", "ctypes.dlopen") or event.startswith(("os.", "socket.", "subprocess.")):
            notes.append(f"{event} {arguments[0]}")

    return note
