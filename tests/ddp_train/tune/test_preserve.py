"""What a measurement leaves behind: the state as it was, and memory that is free again."""

from __future__ import annotations

import weakref

import torch
from torch import nn

from ddp_train.tune.preserve import preserved, release_memory


def test_a_buffer_that_is_replaced_inside_is_the_old_one_afterwards() -> None:
    network = nn.BatchNorm1d(2)
    before = network.running_mean
    with preserved(network):
        network.running_mean = torch.ones(2)
    assert network.running_mean is before and torch.equal(before, torch.zeros(2))


def test_a_trial_that_refers_to_itself_is_freed() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("x", None)
    network.__dict__["itself"] = network
    gone = weakref.ref(network)
    del network
    assert gone() is not None
    release_memory()
    assert gone() is None
