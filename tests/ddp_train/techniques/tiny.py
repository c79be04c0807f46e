"""Networks that train in milliseconds, named as `--model tests.ddp_train.techniques.tiny:plain`."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ddp_train.models import Residual


def plain(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Nothing that depends on how a batch is cut over ranks: no batch statistics, no dropout."""
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 8, 3, stride=4, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, num_classes),
    )


def pooled(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """`plain` for images of any size: pools globally."""
    return nn.Sequential(
        *list(plain(num_classes, image_shape))[:-2], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes)
    )


def stateful(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Batch statistics, dropout and a residual branch: what a resume must bring back exactly."""
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 8, 3, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * 8 * 8, num_classes),
    )


def normed(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Batch statistics, and nothing else that depends on how a batch is cut."""
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 8, 3, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, num_classes),
    )


def single(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Holds what cannot be copied."""
    network = plain(num_classes, image_shape)
    network.names = (name for name, _ in network.named_parameters())  # type: ignore[assignment]
    return network


class Cliff(nn.Module):
    """Its logits are infinite as soon as its last layer has moved a little."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("start", network[-1].weight.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        moved = (self.network[-1].weight.detach() - self.start).norm()
        return self.network(images) * (1.0 if moved < 0.1 else math.inf)


def cliff(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """A loss that is lost from one step to the next."""
    network = plain(num_classes, image_shape)
    assert isinstance(network, nn.Sequential)
    return Cliff(network)
