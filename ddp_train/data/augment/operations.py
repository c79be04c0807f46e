"""Augmentation operations with separate draws for each sample: their interface, and all but the policies.

Continuous magnitudes are drawn from tables of evenly spaced values, so that devices cannot round them differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ddp_train.data.augment import colour, geometry, keyed_random

_STEPS = 1025  # odd, so that the middle value changes nothing
_CROP_RATIO = (3 / 4, 4 / 3)
_HUE_SHARE = 0.25


class Operation(Protocol):
    """One step between flip and erasing. A sample's draws are small integers, made from its keyed 64-bit words.

    words: how many words a sample's draw takes. draw: int64 [n, words] -> the choices for each sample, integers [n] or
    [n, k]. apply: uint8 [n, H, W, C] -> the changed images; the input may be overwritten.
    """

    words: int

    def draw(self, words: Tensor) -> Tensor:
        """The choices for each sample."""

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The changed images."""


def change_chosen(
    images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], parameters: Tensor
) -> Tensor:
    """`change(images, parameters)` for the chosen samples, the others as they are; `images` may be overwritten.

    images: uint8 [n, H, W, C]; chosen: bool [n]; parameters: [n, ...]. On the CPU the chosen ones are gathered. On a
    GPU, where counting them would mean waiting for the device, all are changed and the chosen ones kept.
    """
    if images.device.type != "cpu":
        return masked(images, chosen, change, parameters)
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    return images.index_copy_(0, rows, change(images.index_select(0, rows), parameters.index_select(0, rows)))


def masked(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], parameters: Tensor) -> Tensor:
    """change_chosen without a host synchronisation."""
    return torch.where(chosen.view(-1, 1, 1, 1), change(images, parameters), images)


class ResizedCrop:
    """A rectangle of at least `least` of the area, with sides in a ratio of 3:4 to 4:3, scaled up to the image's size
    (Szegedy et al. 2015, arXiv:1409.4842, the crops of Inception). Draws are top, left, height, width: int16 [n, 4]."""

    words = 3

    def __init__(self, least: float, size: tuple[int, int], device: torch.device) -> None:
        self._boxes = box_sizes(*size, (least, 1.0), _CROP_RATIO).to(device)
        self._sides = torch.tensor(size).to(device)

    def draw(self, words: Tensor) -> Tensor:
        """Size and corner of each crop, int16 [n, 4]."""
        size = self._boxes.index_select(0, keyed_random.integers(words[:, 0], len(self._boxes)))
        corner = keyed_random.integers(words[:, 1:], self._sides + 1 - size)
        return torch.cat([corner, size], 1).to(torch.int16)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The crops, scaled back to the full size."""
        return geometry.resized_crop(images, drawn)


class Rotation:
    """Rotation by -degrees to degrees about the centre, bilinearly; corners from outside the image are black.
    Draws are indices into the table of angles: int16 [n]."""

    words = 1

    def __init__(self, degrees: float, device: torch.device) -> None:
        self.angles = torch.linspace(-degrees, degrees, _STEPS, dtype=torch.float64).tolist()
        self._maps = torch.tensor([geometry.rotation(angle) for angle in self.angles]).to(device)

    def draw(self, words: Tensor) -> Tensor:
        """The index of each angle, int16 [n]."""
        return keyed_random.integers(words[:, 0], _STEPS).to(torch.int16)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The rotated images."""
        return geometry.affine(images, self._maps[drawn.long()], "bilinear")


class ColourJitter:
    """Brightness, contrast and saturation by factors from 1 - strength to 1 + strength, and hue by up to a quarter of
    the strength, as in SimCLR (Chen et al. 2020, arXiv:2002.05709); in this order. Draws are indices into the tables:
    int16 [n, 4]."""

    words = 4

    def __init__(self, strength: float, device: torch.device) -> None:
        self.factors = torch.linspace(1 - strength, 1 + strength, _STEPS).to(device)
        self.shifts = torch.linspace(-strength * _HUE_SHARE, strength * _HUE_SHARE, _STEPS).to(device)

    def draw(self, words: Tensor) -> Tensor:
        """The index of each factor, int16 [n, 4]."""
        return keyed_random.integers(words, _STEPS).to(torch.int16)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images with changed brightness, contrast, saturation and hue."""
        bright, contrast, colours, hue = drawn.long().unbind(1)
        images = colour.brightness(images, self.factors[bright])
        images = colour.contrast(images, self.factors[contrast])
        images = colour.saturation(images, self.factors[colours])
        return colour.hue(images, self.shifts[hue])


class Grayscale:
    """Conversion to grey with a probability. Draws are 1 for grey, else 0: uint8 [n]."""

    words = 1

    def __init__(self, probability: float) -> None:
        self._bound = int(probability * (1 << 20))

    def draw(self, words: Tensor) -> Tensor:
        """Which images turn grey, uint8 [n]."""
        return (keyed_random.integers(words[:, 0], 1 << 20) < self._bound).to(torch.uint8)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images, the chosen ones grey."""
        return change_chosen(images, drawn.bool(), lambda chosen, _: colour.grayscale(chosen), drawn)


def box_sizes(height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Heights and widths of rectangles to draw from, int64 [k, 2].

    A grid over shares of the area and the logarithm of the aspect ratio (height to width), without those that are
    larger than the image; the image itself where none fits. A table keeps roots and powers, which devices round
    differently, out of the draws.
    """
    low, high = (math.log(edge) for edge in ratio)
    sizes = []
    for i in range(32):
        pixels = height * width * (area[0] + (i + 0.5) / 32 * (area[1] - area[0]))
        for j in range(32):
            aspect = math.exp(low + (j + 0.5) / 32 * (high - low))
            size = (max(1, round(math.sqrt(pixels * aspect))), max(1, round(math.sqrt(pixels / aspect))))
            if size[0] <= height and size[1] <= width:
                sizes.append(size)
    return torch.tensor(sizes or [(height, width)], dtype=torch.int64)
