"""A context for techniques under test: a small run on one rank of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ddp_train.config.options import Config
from ddp_train.config.parse import with_values
from ddp_train.distributed.process_group import Ranks
from ddp_train.optim.precision import Precision
from ddp_train.technique import Context


def make_context(network: nn.Module, **options: Any) -> Context:
    """`options`: values of the configuration by name."""
    return Context(
        config=with_values(Config(given=frozenset(options)), options),
        network=network,
        device=torch.device("cpu"),
        precision=Precision("off", torch.device("cpu")),
        ranks=Ranks(),
        epochs=4,
        steps_per_epoch=10,
        global_batch=32,
        classes=10,
        image_shape=(3, 32, 32),
        peak_rate=0.1,
    )
