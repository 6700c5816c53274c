"""Gradients are the sums of everyone's, and on their way before the backward pass is over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support import gloo
from vidray.training.loop import gradients
from vidray.training.loop.gradients import GradientSum, buckets

WORLD = 3


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 4))


def inputs_of(rank: int, micro: int) -> torch.Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(10 * rank + micro))


def backward(network: nn.Module, rank: int, micro: int) -> None:
    network(inputs_of(rank, micro)).square().mean().backward()


def gradients_of(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters()]


def expected(ranks: tuple[int, ...] = (0, 1, 2), micros: int = 2) -> list[torch.Tensor]:
    """What one process gets that has everyone's clips, in float64, summed in the order of the ranks."""
    network = make_network().double()
    for rank in ranks:
        for micro in range(micros):
            network(inputs_of(rank, micro).double()).square().mean().backward()
    return gradients_of(network)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What three processes over gloo found."""
    folder = tmp_path_factory.mktemp("gradients")
    gloo.finish(gloo.start(WORLD, work, folder), seconds=120)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    gradients.BUCKET_BYTES = 4096  # the small network has several
    found = {"summed": summed(rank), "again": summed(rank), "one_idle": summed(rank, idle=1), "early": early(rank)}
    torch.save(found | {"data_parallel": data_parallel(rank)}, folder / f"{rank}.pt")


def summed(rank: int, *, idle: int | None = None) -> list[torch.Tensor]:
    network = make_network()
    total = GradientSum(list(network.parameters()), world_size=WORLD)
    for step in range(2):  # the first must leave nothing behind for the second
        network.zero_grad()
        for micro in range(2) if rank != idle or step == 0 else ():
            if micro == 1:
                total.begin()
            backward(network, rank, micro)
        total.finish()
    return gradients_of(network)


def early(rank: int) -> tuple[int, int, int]:
    """Buckets that had been sent after the first of two backward passes, and when the second reached the first layer;
    and how many there are."""
    network = make_network()
    total = GradientSum(list(network.parameters()), world_size=WORLD)
    backward(network, rank, 0)
    after_first, seen = total.num_sent, []
    network[0].bias.register_post_accumulate_grad_hook(lambda parameter: seen.append(total.num_sent))
    total.begin()
    backward(network, rank, 1)
    total.finish()
    return after_first, seen[0], total.num_buckets


def data_parallel(rank: int) -> list[torch.Tensor]:
    network = make_network()
    wrapped = DistributedDataParallel(network, bucket_cap_mb=1)
    with wrapped.no_sync():
        backward(wrapped, rank, 0)
    backward(wrapped, rank, 1)
    return [gradient * WORLD for gradient in gradients_of(network)]


def assert_close(found: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for gradient, expected_gradient in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, expected_gradient.to(gradient.dtype), rtol=1e-5, atol=1e-6)


def test_sums_are_those_of_one_process_with_all_clips(found):
    for rank in range(WORLD):
        assert_close(found[rank]["summed"], expected())


def test_sums_are_those_of_distributed_data_parallel(found):
    assert_close(found[0]["summed"], found[0]["data_parallel"])


def test_sums_are_the_same_bits_on_all_ranks_and_each_time(found):
    for rank in range(WORLD):
        for first, other in zip(found[0]["summed"], found[rank]["again"], strict=True):
            assert torch.equal(first, other)


def test_a_rank_without_a_backward_pass_takes_part(found):
    for rank in range(WORLD):
        assert_close(found[rank]["one_idle"], expected(ranks=(0, 2)))


def test_buckets_are_sent_during_the_last_backward_pass_and_not_before(found):
    after_first, at_first_layer, num_buckets = found[0]["early"]
    assert after_first == 0
    assert num_buckets > 2
    assert at_first_layer >= num_buckets - 2


def test_one_process_sends_nothing_and_counts_what_has_no_gradient_as_zero():
    network = make_network()
    unused = nn.Parameter(torch.ones(3))
    total = GradientSum([*network.parameters(), unused], world_size=1)
    total.begin()
    backward(network, 0, 0)
    total.finish()
    assert_close(gradients_of(network), expected(ranks=(0,), micros=1))
    assert torch.equal(unused.grad, torch.zeros(3))


def test_buckets_are_neighbours_of_one_type_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 100)
    sizes = [10, 15, 1, 40, 2]  # of 4 bytes each
    tensors = [torch.zeros(size) for size in sizes]
    tensors.append(torch.zeros(1, dtype=torch.float64))
    assert [[len(tensor) for tensor in bucket] for bucket in buckets(tensors)] == [[10, 15], [1], [40], [2], [1]]
