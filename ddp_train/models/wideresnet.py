"""Wide residual networks, WRN-d-k: depth d in pre-activation blocks, k times as wide as the first ResNets for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.models.blocks import ImageShape, Residual, conv_norm_relu, init_weights, require_size

_CHANNELS = (16, 32, 64)
_LEAST_SIDE = 4


class WideResNet(nn.Module):
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
        super().__init__()
        require_size("wideresnet", image_shape, _LEAST_SIDE)
        if n_layers < 10 or n_layers % 6 != 4:
            raise UserError(f"--n-layers {n_layers}: wideresnet has 6 n + 4 of them: 10, 16, 22, 28, 34, 40 ...")
        channels = 16
        self.stem = nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for group, base in enumerate(_CHANNELS):
            for index in range((n_layers - 4) // 6):
                wide = int(base * width_mult)
                blocks.append(_block(channels, wide, stride=2 if group and not index else 1, dropout=dropout))
                channels = wide
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, num_classes),
        )
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits


def _block(in_channels: int, channels: int, *, stride: int, dropout: float) -> Residual:
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
