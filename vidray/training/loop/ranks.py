"""The training processes of a run, as one of them sees them: who it is, and how it talks to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from vidray.training.loop.gradients import GradientSum, buckets, copy_pieces


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

    def gradient_sum(self, parameters: Sequence[torch.nn.Parameter]) -> GradientSum:
        """What replaces the gradients of these parameters by the sums of everyone's, step by step."""
        return GradientSum(parameters, world_size=self.world_size)

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
        for bucket in buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat, op=operation)
            copy_pieces(flat, bucket)
