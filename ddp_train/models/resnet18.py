"""ResNet-18 with the stem for small images: 3x3 without stride, and no max-pooling."""

from __future__ import annotations

from torch import Tensor, nn

from ddp_train.models.blocks import basic_block, head, init_weights, stem
from ddp_train.models.shape import ImageShape, require_size

_STAGES = 4
_BLOCKS = 2
_LEAST_SIDE = 8


class ResNet18(nn.Module):
    """Four stages of two basic blocks (He et al. 2016, arXiv:1512.03385); 11.2 million parameters.

    The first stage has int(64 x width_mult) channels at the images' own size; each further one has twice as many and
    halves the sides. The original's stem (7x7 with stride 2, then max-pooling) would leave 8x8 of a 32x32 image.
    `dropout`: before the last layer; the original has none. Raises UserError for images under 8x8.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: ImageShape = (3, 32, 32),
        *,
        width_mult: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_size("resnet18", image_shape, _LEAST_SIDE)
        channels = int(64 * width_mult)
        self.stem = stem(image_shape[0], channels)
        blocks: list[nn.Module] = []
        for index in range(_STAGES * _BLOCKS):
            grows = index > 0 and index % _BLOCKS == 0
            blocks.append(basic_block(channels, channels * (1 + grows), stride=1 + grows))
            channels *= 1 + grows
        self.blocks = nn.Sequential(*blocks)
        self.head = head(channels, num_classes, dropout)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits
