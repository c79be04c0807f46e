"""mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899): images in pairs.

mixup blends the two images of a pair, CutMix pastes a rectangle of one into the other; targets are blended in the
same ratio. Effect: less overfitting in long runs, predictions that are less certain; short runs are slowed down.
Cost: one pass over the images. With both, each step draws one of the two. The training accuracy counts the larger
part of a target and says little. With label smoothing, targets are softened twice.

The draws of a step depend on (seed, step) alone, and pairs are neighbors in the global batch, so that ranks and
micro-batches which begin at even positions see the same images as a single rank.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from ddp_train.data.augment import keyed_random
from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--mixup ALPHA`, `--cutmix ALPHA`, `--mixup-prob`."""
    options = context.config.augment
    mixing = _Mixing(options.mixup or 0.0, options.cutmix or 0.0, options.mixup_prob, context.classes)
    return Technique(name="mixing", batch=mixing)


def blend(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """mixup: `share` of each image and of its target, the rest from the other image of the pair.

    images: float [n, C, H, W]; targets: float [n, classes]. Returns new tensors like them.
    """
    return torch.lerp(_paired(images), images, share), torch.lerp(_paired(targets), targets, share)


def paste(images: Tensor, targets: Tensor, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """CutMix: the rectangle comes from the pair's other image; targets are blended by area.

    images: float [n, C, H, W]; targets: float [n, classes]; box: top, bottom, left, right in pixels, bottom and right
    exclusive. Returns new tensors like them.
    """
    top, bottom, left, right = box
    mixed = images.clone(memory_format=torch.preserve_format)
    mixed[:, :, top:bottom, left:right] = _paired(images[:, :, top:bottom, left:right])
    share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, torch.lerp(_paired(targets), targets, share)


def rectangle(height: int, width: int, share: float, draw: random.Random) -> tuple[int, int, int, int]:
    """A rectangle of 1 - `share` of the area about a random point, cut off at the border: top, bottom, left, right."""
    half = 0.5 * math.sqrt(1 - share)
    half_height, half_width = int(half * height), int(half * width)
    y, x = draw.randrange(height), draw.randrange(width)
    top, left = max(0, y - half_height), max(0, x - half_width)
    return top, min(height, y + half_height), left, min(width, x + half_width)


class _Mixing:
    def __init__(self, mixup: float, cutmix: float, probability: float, classes: int) -> None:
        self._mixup, self._cutmix = mixup, cutmix
        self._probability, self._classes = probability, classes

    def __call__(self, images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        draw = random.Random(keyed_random.key(moment.seed, moment.step, keyed_random.MIXING))
        mixed, cut = draw.random() < self._probability, draw.random() < 0.5
        if not mixed:
            return images, targets
        cut = bool(self._cutmix) and (cut or not self._mixup)
        alpha = self._cutmix if cut else self._mixup
        share = draw.betavariate(alpha, alpha)
        if targets.ndim == 1:
            targets = torch.nn.functional.one_hot(targets, self._classes).float()
        if cut:
            return paste(images, targets, rectangle(images.shape[2], images.shape[3], share, draw))
        return blend(images, targets, share)


def _paired(values: Tensor) -> Tensor:
    """The partner of each sample, its neighbor: 1, 0, 3, 2, ...; the last of an odd number is its own partner."""
    count = len(values)
    partners = (torch.arange(count, device=values.device) ^ 1).clamp_(max=count - 1)
    if values.ndim == 2 or values.is_contiguous():
        return values.index_select(0, partners)
    return values.permute(0, 2, 3, 1).index_select(0, partners).permute(0, 3, 1, 2)  # stays channels-last
