"""Operations on the colours of whole batches, with a magnitude per sample.

Definitions are Pillow's (ImageEnhance, ImageOps) as torchvision's tensor functions have them. images: uint8
[n, H, W, C] with C of 1 or 3, and so are the results; factors: float32 [n]. Sums over an image are sums of whole
numbers, and products and sums are rounded one by one, so that a sample does not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor: 0 gives black, 1 the image itself."""
    return _to_levels(images * _per_image(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the mean grey level by the factor: 0 gives a grey plane, 1 the image itself."""
    luma = _luma(images).flatten(1)
    mean = (luma.sum(1, dtype=torch.float64) / luma.shape[1]).float()
    return _blend(images, _per_image(mean), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the grey image by the factor: 0 gives grey, 1 the image itself."""
    return images if images.shape[3] == 1 else _blend(images, _luma(images), factor)


def grayscale(images: Tensor) -> Tensor:
    """Convert to grey, in as many channels as before."""
    return _luma(images).to(torch.uint8).expand_as(images)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle by `shift` of its circumference, -0.5 to 0.5."""
    if images.shape[3] == 1:
        return images
    red, green, blue = images.permute(3, 0, 1, 2).contiguous().float() / 255
    most = torch.maximum(torch.maximum(red, green), blue)
    chroma = most - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(
        most == red,
        (green - blue) / divisor,
        torch.where(most == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixth = sixth + shift.view(-1, 1, 1) * 6
    channels = []
    for offset in (5, 3, 1):  # Smith 1978: each channel is a clipped triangle over the circle
        place = torch.remainder(sixth + offset, 6)
        channels.append(most - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, 3).mul_(255).round_().to(torch.uint8)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the smoothed image by the factor: 0 gives that, 1 the image itself. Edge pixels stay."""
    if min(images.shape[1:3]) < 3:
        return images
    levels = images.to(torch.int16)
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    centre = levels[:, 1:-1, 1:-1]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = ((around + 4 * centre).float() / 13).round_()
    result = images.clone()
    result[:, 1:-1, 1:-1] = _to_levels((smooth - centre) * (1 - _per_image(factor)) + centre)
    return result


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper bits of each level. bits: integers [n], 0 to 8."""
    return images & (256 - 2 ** (8 - bits.long())).to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels at or above the threshold (0 to 255, float32 [n])."""
    return torch.where(images >= _per_image(threshold), invert(images), images)


def invert(images: Tensor) -> Tensor:
    """The negative of the images."""
    return images ^ 255


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the whole range; a channel with a single level stays as it is."""
    low, high = (edge.float() for edge in torch.aminmax(images.flatten(1, 2).transpose(1, 2).contiguous(), dim=2))
    flat = low == high
    low, scale = torch.where(flat, 0.0, low), torch.where(flat, 1.0, (high - low) * (1 / 255))
    return _to_levels((images - low[:, None, None]) / scale[:, None, None])


def equalize(images: Tensor) -> Tensor:
    """Equalize each channel's histogram, by Pillow's integer rule; a channel with too few levels stays as it is."""
    levels = images.permute(0, 3, 1, 2).flatten(2).long()
    histogram = torch.zeros((*levels.shape[:2], 256), dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, levels, torch.ones((), dtype=torch.int32, device=images.device).expand_as(levels))
    below = histogram.cumsum(2)
    last = histogram.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - last).div(255, rounding_mode="floor")
    even = (below - histogram + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    even = torch.where(step == 0, torch.arange(256, device=images.device), even).to(torch.uint8)
    height, width = images.shape[1:3]
    return even.gather(2, levels).unflatten(2, (height, width)).permute(0, 2, 3, 1)


def _luma(images: Tensor) -> Tensor:
    """Grey levels as whole numbers: float32 [n, H, W, 1]."""
    if images.shape[3] == 1:
        return images.float()
    red, green, blue = images.float().split(1, 3)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).floor_()


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Blend `factor` of the images with 1 - factor of the other; factors above 1 lead away from the other."""
    share = _per_image(factor)
    return _to_levels(images * share + other * (1 - share))


def _to_levels(values: Tensor) -> Tensor:
    """Floats as uint8 levels, clamped."""
    return values.clamp_(0, 255).to(torch.uint8)


def _per_image(values: Tensor) -> Tensor:
    """One value per image, shaped [n, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)
