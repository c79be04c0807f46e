"""Residual networks for small images: ResNet-18, a wide and shallow one, and wide ResNets. They start without pooling.

Source of the basic blocks: He et al. 2016 (arXiv:1512.03385).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.models.blocks import ImageShape, Residual, conv_norm_relu, init_weights, require_size


class _ResidualNetwork(nn.Module):
    def __init__(self, stem: nn.Module, blocks: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, blocks, head
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        return self.head(self.blocks(self.stem(images)))


class ResNet18(_ResidualNetwork):
    """Four stages of two basic blocks; 11.2 million parameters. Raises UserError for images under 8x8.

    The first stage has int(64 x width_mult) channels at full image size; each further stage has twice as many and
    halves the sides. The original's stem (7x7 with stride 2, then max-pooling) would leave 8x8 of a 32x32 image.
    """

    def __init__(
        self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, width_mult: float = 1.0, dropout: float = 0.0
    ) -> None:
        require_size("resnet18", image_shape, 8)
        first = int(64 * width_mult)
        widths = [first, *(first << stage for stage in range(4) for _ in range(2))]
        super().__init__(*_basic_parts(image_shape[0], widths, num_classes, dropout))


class ResidualCifarNet(_ResidualNetwork):
    """One basic block each of 128, 256, 512 and 768 channels (x width_mult); about 14.1 million parameters.

    Few layers, so that a GPU has large ones to work on. Raises UserError for images under 8x8.
    """

    def __init__(
        self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, width_mult: float = 1.0, dropout: float = 0.0
    ) -> None:
        require_size("residual", image_shape, 8)
        first, *wider = (int(channels * width_mult) for channels in (128, 256, 512, 768))
        super().__init__(*_basic_parts(image_shape[0], [first, first, *wider], num_classes, dropout))


class WideResNet(_ResidualNetwork):
    """WRN-d-k (Zagoruyko and Komodakis 2016, arXiv:1605.07146): d is `n_layers` = 6 n + 4, k is `width_mult`.

    Three groups of n blocks with 16 k, 32 k and 64 k channels, the second and third at half the size of the one before.
    The default, WRN-16-8, has 11.0 million parameters, WRN-28-10 has 36.5. `dropout`: between the convolutions of a
    block, as in the paper (0.3 there). Raises UserError for another depth, and for images under 4x4.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: ImageShape = (3, 32, 32),
        *,
        width_mult: float = 8.0,
        n_layers: int = 16,
        dropout: float = 0.0,
    ) -> None:
        require_size("wideresnet", image_shape, 4)
        if n_layers < 10 or n_layers % 6 != 4:
            raise UserError(f"--n-layers {n_layers}: wideresnet has 6 n + 4 of them: 10, 16, 22, 28, 34, 40 ...")
        channels = 16
        stem = nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for group, base in enumerate((16, 32, 64)):
            for index in range((n_layers - 4) // 6):
                wide = int(base * width_mult)
                blocks.append(_wide_block(channels, wide, stride=2 if group and not index else 1, dropout=dropout))
                channels = wide
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *pool, nn.Linear(channels, num_classes))
        super().__init__(stem, nn.Sequential(*blocks), head)


def _basic_parts(
    in_channels: int, widths: Sequence[int], num_classes: int, dropout: float
) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """A stem, basic blocks, and a head with `dropout` before its linear layer.

    widths: channels of the stem and of each block; a block that is wider than the one before it halves the image.
    """
    stem = nn.Sequential(*conv_norm_relu(in_channels, widths[0]))
    pairs = pairwise(widths)
    blocks = nn.Sequential(*(_basic_block(before, after, 2 if after > before else 1) for before, after in pairs))
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Sequential(*pool, nn.Dropout(dropout), nn.Linear(widths[-1], num_classes))
    return stem, blocks, head


def _basic_block(in_channels: int, channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions, each with batch norm, and ReLU after the first and after the sum.

    Where the shape changes the shortcut is a 1x1 convolution with batch norm.
    """
    shortcut = None
    if stride != 1 or in_channels != channels:
        projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))
    branch = nn.Sequential(
        *conv_norm_relu(in_channels, channels, stride),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    return Residual(branch, shortcut=shortcut, after=nn.ReLU(inplace=True))


def _wide_block(in_channels: int, channels: int, *, stride: int, dropout: float) -> Residual:
    """Batch norm, ReLU, convolution, twice. Where the shape changes the shortcut starts after the first ReLU."""
    before = [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)]
    branch: list[nn.Module] = [
        *conv_norm_relu(in_channels, channels, stride),
        nn.Dropout(dropout),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
    ]
    if stride == 1 and in_channels == channels:
        return Residual(nn.Sequential(*before, *branch))
    shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return Residual(nn.Sequential(*branch), before=nn.Sequential(*before), shortcut=shortcut)
