"""Image shapes, and the refusal of images too small for a chain of poolings."""

from __future__ import annotations

from ddp_core.errors import UserError

ImageShape = tuple[int, int, int]
"""(channels, height, width)."""


def require_size(model: str, image_shape: ImageShape, least: int) -> None:
    """Raise UserError when an image is less than `least` pixels high or wide."""
    _, height, width = image_shape
    if min(height, width) < least:
        raise UserError(
            f"--model {model} cannot take {height}x{width} images: at least {least}x{least} pixels are needed"
        )
