"""Networks that go wrong on purpose, named as `--model tests.ddp_train.diagnostics.spoilt:...`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def loud(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """A last layer that starts a thousand times too large."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], num_classes))
    with torch.no_grad():
        network[1].weight.mul_(1000)
    return network


class Poison(nn.Module):
    """Passes its input on; from the `at`-th pass in training mode on, adds `value` to it on one rank."""

    def __init__(self, at: int, value: float, rank: int = 0) -> None:
        super().__init__()
        self.at, self.value, self.rank, self.passes = at, value, rank, 0

    def forward(self, x: Tensor) -> Tensor:
        import os

        here = int(os.environ.get("RANK", "0")) == self.rank
        self.passes += self.training
        return x + self.value if here and self.passes >= self.at else x


def poisoned(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """NaN behind the second layer from the fourteenth training pass on, on the last of up to two ranks."""
    import os

    rank = int(os.environ.get("WORLD_SIZE", "1")) - 1
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 4, 3, stride=4),
        nn.ReLU(),
        Poison(14, float("nan"), rank),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, num_classes),
    )
