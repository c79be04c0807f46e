"""Options of augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Augmentation"""

    augment: Literal["none", "minimal", "balanced", "heavy"] | None = None
    """Level: minimal is flip; balanced crop and flip; heavy crop, flip and random erasing (None: by dataset)."""
    flip: Literal["random", "alternating", "off"] | None = None
    """Mirrored images: drawn in each epoch, or every other epoch from a draw in the first (None: by level)."""
    crop_padding: int | None = None
    """balanced, heavy: pixels by which an image is widened for the crop (None: an eighth of its side)."""
    random_resized_crop: float | None = None
    """In place of the level's crop: at least this share of the area, scaled to the image's size; 0.08 is usual."""
    rotation: float | None = None
    """Rotate by up to so many degrees either way."""
    augment_policy: Literal["autoaugment", "randaugment", "trivialaugment"] | None = None
    """AutoAugment's CIFAR-10 policy, RandAugment, or TrivialAugment (Wide), after crop and flip."""
    randaugment_ops: int | None = None
    """randaugment: operations per image (None: 2)."""
    randaugment_magnitude: int | None = None
    """randaugment: magnitude of the operations, from 0 to 30 (None: 9)."""
    color_jitter: float | None = None
    """Brightness, contrast and saturation change by up to this share, hue by a quarter of it."""
    grayscale: float | None = None
    """Probability that an image loses its colours."""
    erasing: float | None = None
    """Probability that a rectangle is erased (None: by level; heavy has 0.5)."""
    mixup: float | None = None
    """mixup: blend pairs of images by a share from Beta(ALPHA, ALPHA); 0.2 and 1 are usual."""
    cutmix: float | None = None
    """CutMix: paste a rectangle of the pair's other image, its area from Beta(ALPHA, ALPHA); 1 is usual."""
    mixup_prob: float = 1.0
    """mixup, cutmix: probability that a step's images are mixed at all."""
    progressive_resize: int | None = None
    """Train on images that grow from this shorter side in pixels; evaluation is at full size."""
    progressive_resize_end: int | None = None
    """progressive_resize: the shorter side at the end (None: the images' own)."""
    progressive_resize_epochs: int | None = None
    """progressive_resize: epochs over which the images grow (None: four fifths of the run)."""
