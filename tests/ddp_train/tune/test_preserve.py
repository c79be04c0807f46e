"""Memory between trials."""

from __future__ import annotations

import weakref

from torch import nn

from ddp_train.tune.preserve import release_memory


def test_a_trial_that_refers_to_itself_is_freed() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("x", None)
    network.__dict__["itself"] = network
    gone = weakref.ref(network)
    del network
    assert gone() is not None
    release_memory()
    assert gone() is None
