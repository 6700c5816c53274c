"""The training processes of a run, as one of them sees them: who it is, and how it talks to the others.

Gradients go through one flat all-reduce in the order of the parameters, not through DistributedDataParallel: that one
regroups its buckets after the first backward pass, so with three or more workers a resumed run would add up in another
order than one that was never stopped, and end with other weights. It also makes the time for communication plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

BUCKET_BYTES = 32 * 1024**2
"""Gradients are copied together and reduced in pieces of about this size, so that the copies cost little memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """One process among ``world_size``. With a world of one nothing here communicates."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """True for the one process that writes."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of everyone's value, the same bits for all."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor.item())

    def sum_tensor(self, tensor: torch.Tensor) -> None:
        """Replace a tensor on this rank's device by the sum of everyone's, without waiting for a GPU."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """Everyone's picklable value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's picklable value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors with the first process's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by the sum of everyone's. A parameter without one counts as zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._reduce(gradients, dist.ReduceOp.SUM)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace floating-point tensors (batch-norm statistics) by everyone's mean, others (counts) by the largest."""
        if self.world_size == 1:
            return
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        self._reduce(floats, dist.ReduceOp.SUM)
        for tensor in floats:
            tensor.div_(self.world_size)
        self._reduce([tensor for tensor in tensors if not tensor.is_floating_point()], dist.ReduceOp.MAX)

    def _reduce(self, tensors: Sequence[torch.Tensor], operation: dist.ReduceOp.RedOpType) -> None:
        if self.world_size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat, op=operation)
            pieces = flat.split([tensor.numel() for tensor in bucket])
            for tensor, piece in zip(bucket, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))


def _buckets(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Neighbours of one type, up to ``BUCKET_BYTES`` together: a function of the list alone."""
    buckets: list[list[torch.Tensor]] = []
    num_bytes = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if not buckets or num_bytes + size > BUCKET_BYTES or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            num_bytes = 0
        buckets[-1].append(tensor)
        num_bytes += size
    return buckets
