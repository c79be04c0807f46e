"""Options of augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, When, option


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Augmentation"""

    augment: Literal["none", "minimal", "balanced", "heavy"] | None = option(
        None,
        "Level. minimal: flip; balanced: crop and flip; heavy: crop, flip and random erasing (default: by dataset).",
    )
    flip: Literal["random", "alternating", "off"] | None = option(
        None,
        "Mirrored images. random: random each epoch; alternating: random in epoch 1, then flipped every epoch "
        "(default: by level).",
    )
    crop_padding: int | None = option(
        None,
        "Pixels added around an image before the crop (default: an eighth of its side).",
        Range(1, 256),
        only_with=When("augment", "balanced", "heavy", None),
        excludes={When("random_resized_crop"): "each replaces the crop"},
    )
    random_resized_crop: float | None = option(
        None,
        "Replaces the level's crop: a random part of at least this share of the area, scaled to the image's size; 0.08 "
        "is usual.",
        Range(0, 1, exclusive=True),
    )
    rotation: float | None = option(None, "Rotate by up to this many degrees in either direction.", Range(0, 180))
    augment_policy: Literal["autoaugment", "randaugment", "trivialaugment"] | None = option(
        None, "AutoAugment's CIFAR-10 policy, RandAugment, or TrivialAugment (Wide), after crop and flip."
    )
    randaugment_ops: int | None = option(
        None, "Operations per image (default: 2).", Range(0, 16), only_with=When("augment_policy", "randaugment")
    )
    randaugment_magnitude: int | None = option(
        None, "Magnitude of the operations (default: 9).", Range(0, 30), only_with=When("augment_policy", "randaugment")
    )
    color_jitter: float | None = option(
        None,
        "Change brightness, contrast and saturation by up to this share, hue by up to a quarter of it.",
        Range(0, 1),
    )
    grayscale: float | None = option(None, "Probability that an image is converted to grayscale.", Range(0, 1))
    erasing: float | None = option(
        None, "Probability that a rectangle is erased (default: by level; heavy has 0.5).", Range(0, 1)
    )
    cutout: int | None = option(
        None,
        "Side in pixels of a square that is erased in every image, in place of --erasing's rectangles (default: none).",
        Range(0, 4096),
    )
    mixup: float | None = option(
        None, "mixup: blend pairs of images, with a share from Beta(ALPHA, ALPHA); 0.2 and 1 are usual.", Range(0, 100)
    )
    cutmix: float | None = option(
        None,
        "CutMix: paste a rectangle of another image, with an area from Beta(ALPHA, ALPHA); 1 is usual.",
        Range(0, 100),
    )
    mixup_prob: float = option(
        1.0,
        "Probability that mixup or CutMix is applied in a step.",
        Range(0, 1),
        only_with=When("mixup", others=(When("cutmix"),)),
    )
    progressive_resize: int | None = option(
        None, "Train on images that grow from this shorter side in pixels; evaluation is at full size.", Range(4, 4096)
    )
    progressive_resize_end: int | None = option(
        None,
        "The shorter side at the end (default: that of the images).",
        Range(4, 4096),
        only_with=When("progressive_resize"),
    )
    progressive_resize_epochs: int | None = option(
        None,
        "Epochs over which the images grow (default: four fifths of the run).",
        Range(1, 10**6),
        only_with=When("progressive_resize"),
    )
    progressive_resize_stages: int | None = option(
        None,
        "Sizes from the first to the last, each for as many epochs (default: as many as there are steps of 4 pixels).",
        Range(2, 1000),
        only_with=When("progressive_resize"),
    )
