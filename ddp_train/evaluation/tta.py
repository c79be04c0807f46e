"""Test-time augmentation: an image seen in several ways, whose class probabilities are averaged.

flip: the image and its mirror image. flip+shifts: the same, also moved by one pixel in 32 to each of the four
corners, ten views in all; what comes in at the border is reflected. Source: the evaluation of airbench (Jordan 2024,
arXiv:2404.00498), which weighs its views; here all count alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor
from torch.nn.functional import pad

from ddp_train.engine.evaluate import Views

Tta = Literal["none", "flip", "flip+shifts"]
CORNERS = ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))


def views(tta: Tta) -> Views:
    """The views of images [n, C, H, W], the images themselves first."""
    if tta == "none":
        return lambda images: iter([images])
    return _flipped if tta == "flip" else _shifted


def describe_tta(tta: Tta, below: float | None) -> str:
    """The views, and which images are seen in them. below: see `--tta-below`."""
    return tta if below is None else f"{tta} where the highest probability is below {below:g}"


def _flipped(images: Tensor) -> Iterator[Tensor]:
    """The images, then mirrored."""
    yield images
    yield images.flip(3)


def _shifted(images: Tensor) -> Iterator[Tensor]:
    """The images and four shifts of them, each also mirrored."""
    height, width = images.shape[2:]
    step = max(1, min(height, width) // 32)
    padded = pad(images, (step, step, step, step), mode="reflect")
    for down, right in CORNERS:
        top, left = step * (1 - down), step * (1 - right)
        yield from _flipped(padded[:, :, top : top + height, left : left + width])
