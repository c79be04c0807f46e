"""ResidualCifarNet: wide and shallow, one residual block at each of four sizes."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ddp_train.models.blocks import basic_block, head, init_weights, stem
from ddp_train.models.shape import ImageShape, require_size

_CHANNELS = (128, 256, 512, 768)
_LEAST_SIDE = 8


class ResidualCifarNet(nn.Module):
    """A 3x3 stem and basic blocks of 128, 256, 512 and 768 channels (x width_mult), each at half the size of the last.

    Few layers, so that a GPU has large ones to work on; about 14.1 million parameters. `dropout`: before the last
    layer. Raises UserError for images under 8x8.
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
        require_size("residual", image_shape, _LEAST_SIDE)
        widths = [int(channels * width_mult) for channels in _CHANNELS]
        self.stem = stem(image_shape[0], widths[0])
        halving = [basic_block(before, after, stride=2) for before, after in pairwise(widths)]
        self.blocks = nn.Sequential(basic_block(widths[0], widths[0]), *halving)
        self.head = head(widths[-1], num_classes, dropout)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits
