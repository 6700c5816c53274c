"""Brings batches of views to the device, the next one while the device computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vidray.types import ViewConfig


class StagingBuffer:
    """Room for one batch: (batch_size, T, H, W, C) uint8 on the host and on the device (the same memory on CPUs)."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.host = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_cuda)
        self.device = self.host.to(device)
        self.copied = torch.cuda.Event() if on_cuda else None
        self.consumed = torch.cuda.Event() if on_cuda else None


class Prefetcher:
    """Brings batches to the device.

    A forward on CUDA is only queued, so its caller comes back for the next batch at once, and that one is copied on
    a stream of its own while the device computes. Two buffers: one being computed, one being filled.

        copies   | 0 | 1 |     | 2 |
        compute      |   0   |   1   |   2
    """

    def __init__(self, view: ViewConfig, device: torch.device, *, batch_size: int, pads: bool) -> None:
        shape = (batch_size, *view.views_shape[1:])
        on_cuda = device.type == "cuda"
        self._device = device
        self._pads = pads
        self._buffers = [StagingBuffer(shape, device) for _ in range(2 if on_cuda else 1)]
        self._stream = torch.cuda.Stream(device) if on_cuda else None

    def stage(self, batches: Iterator[Sequence[np.ndarray]]) -> Iterator[torch.Tensor]:
        """Each batch on the device, (N, T, H, W, C) uint8, valid until the next is asked for. Where batches are padded,
        rows beyond its own are leftovers.
        """
        for index, batch in enumerate(batches):
            if self._device.type == "cpu" and not self._pads and (whole := as_one(batch)) is not None:
                yield torch.from_numpy(whole)
                continue
            buffer = self._buffers[index % len(self._buffers)]
            if buffer.copied is not None:
                buffer.copied.synchronize()  # else the host's half is overwritten while it is still being read
            np.stack(batch, out=buffer.host.numpy()[: len(batch)])
            self._copy(buffer)
            yield buffer.device if self._pads else buffer.device[: len(batch)]
            if buffer.consumed is not None:
                buffer.consumed.record(torch.cuda.current_stream(self._device))

    def _copy(self, buffer: StagingBuffer) -> None:
        if self._stream is None:
            if buffer.device is not buffer.host:
                buffer.device.copy_(buffer.host)
            return
        assert buffer.copied is not None
        assert buffer.consumed is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(buffer.consumed)
            buffer.device.copy_(buffer.host, non_blocking=True)
            buffer.copied.record(self._stream)
        torch.cuda.current_stream(self._device).wait_event(buffer.copied)


def as_one(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The stack of arrays of one shape that lie in memory one behind the other, without copying. None if they do not,
    or may not be written to, which PyTorch has no notion of.
    """
    first = arrays[0]
    starts = itertools.count(first.ctypes.data, first.nbytes)
    for array, start in zip(arrays, starts, strict=False):
        if array.ctypes.data != start or not array.flags.c_contiguous or not array.flags.writeable:
            return None
    return np.lib.stride_tricks.as_strided(first, (len(arrays), *first.shape), (first.nbytes, *first.strides))
