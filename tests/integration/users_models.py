"""Networks as users write them, as functions for `--model`: two that train, and those that cannot."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Small(nn.Module):
    """Convolution, batch norm and dropout; `changed`: what becomes of the logits; a layer that nothing uses."""

    def __init__(self, classes: int, shape: Shape, changed: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(shape[0], 8, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, classes)
        self.unused = nn.Linear(8, 3)
        self.changed = changed

    def forward(self, images: Tensor) -> Any:
        random.random()
        np.random.rand()
        return self.changed(self.head(nn.functional.dropout(self.features(images).mean((2, 3)), 0.1, self.training)))


class Lookup(nn.Module):
    """Adds an entry of a table whose gradient is sparse."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(3, classes, sparse=True)

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.table(torch.zeros(len(logits), dtype=torch.int64))


class Normless(Small):
    """Without what a rank computes from its own samples alone, so that two ranks equal one."""

    def __init__(self, classes: int, shape: Shape) -> None:
        super().__init__(classes, shape)
        self.features[2] = nn.Identity()

    def forward(self, images: Tensor) -> Any:
        return {"features": None, "logits": self.head(self.features(images).mean((2, 3)))}


class Skipping(Normless):
    """Leaves one layer out of some passes in training, and another one out of evaluation; has an empty buffer and a
    state of its own."""

    def __init__(self, classes: int, shape: Shape) -> None:
        super().__init__(classes, shape)
        self.skipped, self.training_only = nn.Linear(classes, classes), nn.Linear(classes, classes)
        self.register_buffer("cache", torch.empty(0, 3))

    def get_extra_state(self) -> Any:
        return {"note": "of version 2"}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"note": "of version 2"}

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)["logits"]
        if not self.training:
            return self.skipped(logits)
        logits = self.training_only(logits)
        return logits if torch.rand(()) < 0.4 else self.skipped(logits)


class Remembering(Small):
    """Keeps an array, which no checkpoint can hold."""

    def get_extra_state(self) -> Any:
        return np.zeros(3)


class ModelOutput(OrderedDict[str, Tensor]):
    """As Hugging Face's."""

    logits = property(lambda self: self["logits"])


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def _changed(change: Callable[[Tensor], Any]) -> Callable[..., nn.Module]:
    return lambda num_classes, image_shape: Small(num_classes, image_shape, change)


def _edited(edit: Callable[[nn.Module, int], nn.Module]) -> Callable[..., nn.Module]:
    return lambda num_classes, image_shape: edit(Small(num_classes, image_shape), num_classes)


def meta(num_classes: int, image_shape: Shape) -> nn.Module:
    with torch.device("meta"):
        return Small(num_classes, image_shape)


def complex_weight(network: nn.Module, classes: int) -> nn.Module:
    network.weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    return network


def raises(num_classes: int, image_shape: Shape) -> nn.Module:
    raise ValueError("two\nlines")


def exits(num_classes: int, image_shape: Shape) -> nn.Module:
    raise SystemExit(3)


def patched(num_classes: int, image_shape: Shape) -> nn.Module:
    """Its forward belongs to the network that it was put onto: a copy computes with the weights of that one."""
    network = Small(num_classes, image_shape)
    plain = network.forward
    network.forward = lambda images: 2 * plain(images)  # type: ignore[method-assign]
    return network


def normless(num_classes: int, image_shape: Shape) -> nn.Module:
    return Normless(num_classes, image_shape)


def skipping(num_classes: int, image_shape: Shape) -> nn.Module:
    return Skipping(num_classes, image_shape)


def volumes(num_classes: int, image_shape: Shape) -> nn.Module:
    """Takes the channels for a third dimension."""
    depth, height, width = image_shape
    layers = nn.Unflatten(1, (1, depth)), nn.Conv3d(1, 2, 3, padding=1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(2 * depth * height * width, num_classes))


class View(nn.Module):
    """Flattens, of contiguous tensors alone."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.view(len(maps), -1)


def viewed(num_classes: int, image_shape: Shape) -> nn.Module:
    channels, height, width = image_shape
    return nn.Sequential(nn.Conv2d(channels, 2, 3, padding=1), View(), nn.Linear(2 * height * width, num_classes))


def remembering(num_classes: int, image_shape: Shape) -> nn.Module:
    return Remembering(num_classes, image_shape)


tensor = _changed(lambda logits: logits)
dictionary = _changed(lambda logits: {"loss": None, "logits": logits})
model_output = _changed(lambda logits: ModelOutput(logits=logits))
answer = _changed(Answer)

pair = _changed(lambda logits: (logits, logits))
other_dictionary = _changed(lambda logits: {"out": logits})
classes = _changed(lambda logits: logits[:, :3])
maps = _changed(lambda logits: logits[:, :, None, None])
squeezed = _changed(lambda logits: logits.squeeze())
detached = _changed(lambda logits: logits.detach())
integers = _changed(lambda logits: logits.long())
imaginary = _changed(lambda logits: logits + 0j)
lazy = _edited(lambda network, classes: nn.Sequential(network, nn.LazyLinear(classes)))
frozen = _edited(lambda network, classes: network.requires_grad_(False))
weightless = _edited(lambda network, classes: nn.Flatten())
complex_weights = _edited(complex_weight)
other_size = _edited(lambda network, classes: nn.Sequential(nn.Flatten(), nn.Linear(7, classes)))
sparse = _edited(lambda network, classes: nn.Sequential(network, Lookup(classes)))
half = _edited(lambda network, classes: network.half())
