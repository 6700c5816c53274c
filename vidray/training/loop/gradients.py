"""The sum of gradients over all training processes, which goes on while the backward pass still computes.

    backward:    layer 12 ─ 11 ─ 10 ─ … ─ 1
    all-reduce:            └ bucket 0 ┘└ bucket 1 ┘…

As DistributedDataParallel does it, with two differences. Buckets are a function of the parameters alone: that one
regroups them after the first backward pass, so with three or more workers a resumed run would add up in another order
than one that was never stopped, and end with other weights. And a process whose videos are all bad takes part without
a backward pass of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T", bound=torch.Tensor)

BUCKET_BYTES = 32 * 1024**2
"""Tensors are copied together and reduced in pieces of about this size."""


class GradientSum:
    """Replaces the gradients of ``parameters`` by the sums of everyone's. They are reduced in the order of the backward
    pass, last parameters first, and take room for one more copy of all gradients meanwhile.

    Args:
        parameters: those that learn; alike on all ranks.
        world_size: with 1 nothing is sent.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], *, world_size: int) -> None:
        self._parameters = parameters
        self._buckets = [Bucket(tensors) for tensors in buckets(parameters[::-1])] if world_size > 1 else []
        self._is_last = False
        self.num_sent = 0
        """Buckets of this step that are on their way."""
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._note, bucket))

    @property
    def num_buckets(self) -> int:
        """What is sent in each step."""
        return len(self._buckets)

    def begin(self) -> None:
        """To be called before the step's last backward pass: what that adds to is complete."""
        self._is_last = True

    def _note(self, bucket: Bucket, parameter: torch.Tensor) -> None:
        if not self._is_last:
            return
        bucket.num_missing -= 1
        # One after the other: all ranks must send the same thing at the same time.
        while self.num_sent < len(self._buckets) and self._buckets[self.num_sent].num_missing == 0:
            self._send_next()

    def _send_next(self) -> None:
        self._buckets[self.num_sent].send()
        self.num_sent += 1

    def finish(self) -> None:
        """Send what is left, and wait for the sums. A parameter without a gradient counts as zero."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        while self.num_sent < len(self._buckets):
            self._send_next()
        for bucket in self._buckets:
            bucket.receive()
        self.num_sent, self._is_last = 0, False


class Bucket:
    """Gradients that are reduced together."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.num_missing = len(parameters)
        """Parameters whose gradient is not complete in this step."""
        self._sent: tuple[torch.Tensor, dist.Work] | None = None

    @property
    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def send(self) -> None:
        """Start the sum."""
        flat = torch.cat([gradient.reshape(-1) for gradient in self._gradients])
        self._sent = flat, dist.all_reduce(flat, async_op=True)

    def receive(self) -> None:
        """Wait for the sum (on a GPU: have it wait), and put it where the gradients are."""
        assert self._sent is not None
        flat, work = self._sent
        work.wait()
        copy_pieces(flat, self._gradients)
        self.num_missing, self._sent = len(self.parameters), None


def buckets(tensors: Sequence[T]) -> list[list[T]]:
    """Neighbours of one type, up to ``BUCKET_BYTES`` together: a function of the list alone."""
    found: list[list[T]] = []
    num_bytes = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if not found or num_bytes + size > BUCKET_BYTES or found[-1][0].dtype != tensor.dtype:
            found.append([])
            num_bytes = 0
        found[-1].append(tensor)
        num_bytes += size
    return found


def copy_pieces(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Fill tensors with what lies in ``flat`` one behind the other."""
    pieces = flat.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))
