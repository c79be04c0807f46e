"""The interface of an augmentation operation, and applying one to some of the images of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Operation(Protocol):
    """One step between flip and erasing. A sample's draws are small integers, made from its keyed 64-bit words."""

    words: int
    """Words that a sample's draw takes."""

    def draw(self, words: Tensor) -> Tensor:
        """int64 [n, words] -> what happens to each sample: integers, [n] or [n, k]."""
        ...

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """uint8 [n, H, W, C] -> the same, changed; the images may be overwritten."""
        ...


def change_chosen(
    images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], parameters: Tensor
) -> Tensor:
    """`change(images, parameters)` for the chosen samples, the others as they are; `images` may be overwritten.

    images: uint8 [n, H, W, C]; chosen: bool [n]; parameters: [n, ...]. On the CPU the chosen ones are gathered. On a
    GPU, where counting them would mean waiting for the device, all are changed and the chosen ones kept.
    """
    return (gathered if images.device.type == "cpu" else masked)(images, chosen, change, parameters)


def gathered(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], parameters: Tensor) -> Tensor:
    """change_chosen that works on the chosen ones alone."""
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    return images.index_copy_(0, rows, change(images.index_select(0, rows), parameters.index_select(0, rows)))


def masked(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], parameters: Tensor) -> Tensor:
    """change_chosen without a host synchronisation."""
    return torch.where(chosen.view(-1, 1, 1, 1), change(images, parameters), images)
