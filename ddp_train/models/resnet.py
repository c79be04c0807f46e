"""Residual networks for small images: ResNet-18, and a wide and shallow one. Both start with a 3x3 stem, no pooling.

Source of the blocks: He et al. 2016 (arXiv:1512.03385).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ddp_train.models.blocks import ImageShape, basic_block, head, init_weights, require_size, stem

_LEAST_SIDE = 8


class _ResidualNetwork(nn.Module):
    """A stem, basic blocks, and a head with `dropout` before its linear layer.

    widths: channels of the stem and of each block; a block that is wider than the one before it halves the image.
    Raises UserError for images under 8x8.
    """

    def __init__(self, name: str, num_classes: int, image_shape: ImageShape, widths: Sequence[int], dropout: float):
        super().__init__()
        require_size(name, image_shape, _LEAST_SIDE)
        self.stem = stem(image_shape[0], widths[0])
        blocks = (basic_block(before, after, stride=2 if after > before else 1) for before, after in pairwise(widths))
        self.blocks = nn.Sequential(*blocks)
        self.head = head(widths[-1], num_classes, dropout)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits


class ResNet18(_ResidualNetwork):
    """Four stages of two basic blocks; 11.2 million parameters.

    The first stage has int(64 x width_mult) channels at full image size; each further stage has twice as many and
    halves the sides. The original's stem (7x7 with stride 2, then max-pooling) would leave 8x8 of a 32x32 image.
    """

    def __init__(
        self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, width_mult: float = 1.0, dropout: float = 0.0
    ) -> None:
        first = int(64 * width_mult)
        widths = [first, *(first << stage for stage in range(4) for _ in range(2))]
        super().__init__("resnet18", num_classes, image_shape, widths, dropout)


class ResidualCifarNet(_ResidualNetwork):
    """One basic block each of 128, 256, 512 and 768 channels (x width_mult); about 14.1 million parameters.

    Few layers, so that a GPU has large ones to work on.
    """

    def __init__(
        self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, width_mult: float = 1.0, dropout: float = 0.0
    ) -> None:
        first, *wider = (int(channels * width_mult) for channels in (128, 256, 512, 768))
        super().__init__("residual", num_classes, image_shape, [first, first, *wider], dropout)
