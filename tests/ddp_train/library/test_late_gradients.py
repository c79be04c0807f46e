"""Gradients that DistributedDataParallel does not average are found, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_train.distributed.process_group import Ranks
from ddp_train.engine.gradient_sync import settle_buckets
from ddp_train.library.late_gradients import LateGradients
from ddp_train.library.model import Joined, hook, join, settle_forward


@pytest.fixture
def networks() -> Iterator[list[Joined]]:
    """Two networks of complex numbers, joined on one rank."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    cpu = torch.device("cpu")
    made = [join(nn.Linear(2, 2, dtype=torch.cfloat), Ranks(), cpu, lambda: (1, 1), {}) for _ in range(2)]
    for network in made:
        settle_buckets(network, settle_forward(network))
    yield made
    dist.destroy_process_group()


def test_only_a_further_pass_over_one_forward_pass_is_late(networks: list[Joined]) -> None:
    maker, judge = networks
    late = LateGradients(networks, [], Ranks())
    of_maker, of_judge = (list(network.parameters()) for network in networks)
    inputs = torch.ones(1, 2, dtype=torch.cfloat)

    def backward(output: Tensor) -> None:
        marks = late.before()
        output.abs().sum().backward()
        late.after(marks)

    for _ in range(2):  # a GAN
        fake = maker(inputs)
        backward(judge(inputs))
        backward(judge(fake.detach()))
        assert not late.average(of_judge)
        backward(judge(fake))
        assert not late.average(of_maker) and not late.average(of_judge)
    with judge.no_sync():
        backward(judge(inputs))
        backward(judge(inputs))
    assert not late.average(of_judge), "the last micro-batch averages them"
    one, other = judge(inputs), judge(-inputs)
    backward(one)
    backward(other)
    assert not late.average(of_maker) and late.average(of_judge) and not late.average(of_judge)
    backward(judge.module(inputs))
    late.clear()
    assert not late.average(of_judge)


def test_complex_gradients_pass_through_the_hook(networks: list[Joined]) -> None:
    network = networks[0]
    own = hook(network, Ranks(), torch.device("cpu"), lambda: None)
    assert own is not None and own.shared is None
    network(torch.ones(1, 2, dtype=torch.cfloat)).imag.sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().gt(0).all()) for p in network.parameters())
