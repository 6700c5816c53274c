"""Memory for blocks of views that is used again."""

from __future__ import annotations

import math
import weakref

import numpy as np


class BufferPool:
    """Memory for blocks of views, used again when nothing refers any more to the block that lay there.

    The kernel clears memory that a process asks for: a third of the CPU time of a decode actor, when each block had its
    own. glibc would not keep it: something small is put where a block was, and the next one no longer fits.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array of this shape. What it says at first is left from an earlier use."""
        num_bytes = math.prod(shape)
        memory = self._free.pop() if self._free else np.empty(0, np.uint8)
        if memory.nbytes < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
        # Over a memoryview: views of the buffer then refer to the buffer, where views of an array refer to its base.
        buffer = np.frombuffer(memory.data, np.uint8, num_bytes)
        weakref.finalize(buffer, self._free.append, memory).atexit = False
        return buffer.reshape(shape)
