"""Operations on the geometry of whole batches: a separate affine map or crop for each image.

images: uint8 [n, H, W, C], and so are the results. A map leads from the result's pixels to the image's, as in
torchvision and Pillow: (x, y) -> (a x + b y + c, d x + e y + f) in pixels from the centre.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Map = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f."""


def rotation(degrees: float) -> Map:
    """Rotation about the centre, counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos, -sin, 0.0, sin, cos, 0.0


def shear_x(slope: float, height: int) -> Map:
    """Rows pushed to the left by `slope` times their distance from the upper edge."""
    return 1.0, slope, slope * height / 2, 0.0, 1.0, 0.0


def shear_y(slope: float, width: int) -> Map:
    """Columns pushed up by `slope` times their distance from the left edge."""
    return 1.0, 0.0, 0.0, slope, 1.0, slope * width / 2


def translation(right: int, down: int) -> Map:
    """Translation by whole pixels."""
    return 1.0, 0.0, -float(right), 0.0, 1.0, -float(down)


def affine(images: Tensor, maps: Tensor, mode: Literal["nearest", "bilinear"]) -> Tensor:
    """Transform each image by its map; black where the map leads out of the image. maps: float32 [n, 6]."""
    height, width = images.shape[1:3]
    a, b, c, d, e, f = (part.view(-1, 1, 1) for part in maps.unbind(1))
    x, y = _centred(width, images.device), _centred(height, images.device).unsqueeze(1)
    # Rounded one by one: a matrix product's rounding could depend on the batch.
    return _sample(images, a * x + b * y + c, d * x + e * y + f, mode)


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Crop each image to its rectangle, and scale that up to the size of the image, bilinearly.

    boxes: integers [n, 4], top, left, height, width in pixels, inside the image.
    """
    top, left, height, width = (part.view(-1, 1, 1).float() for part in boxes.unbind(1))
    x = _in_box(images.shape[2], left, width).expand(-1, images.shape[1], -1)
    y = _in_box(images.shape[1], top, height).transpose(1, 2).expand(-1, -1, images.shape[2])
    return _sample(images, x, y, "bilinear")


def _in_box(side: int, first: Tensor, length: Tensor) -> Tensor:
    """Source positions of `side` pixels in the `length` pixels from `first` on, clamped to the outermost centres, and
    relative to the image's centre: float32 [n, 1, side]."""
    place = (torch.arange(side, dtype=torch.float32, device=first.device) + 0.5) * (length / side) - 0.5
    return torch.minimum(place.clamp(min=0), length - 1) + first - (side - 1) / 2


def _centred(side: int, device: torch.device) -> Tensor:
    """Pixel positions from the centre, float32 [side]."""
    return torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2


def _sample(images: Tensor, x: Tensor, y: Tensor, mode: str) -> Tensor:
    """Sample the images at positions x and y relative to the centre, float32 [n, H, W] each."""
    height, width = images.shape[1:3]
    grid = torch.stack([x * (2 / width), y * (2 / height)], 3)
    pixels = images.permute(0, 3, 1, 2).float()
    values = torch.nn.functional.grid_sample(pixels, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return values.round_().to(torch.uint8).permute(0, 2, 3, 1)
