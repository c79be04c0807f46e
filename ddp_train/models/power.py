"""PowerCifarNet: a VGG-like network of adjustable width, sized to the GPUs."""

from __future__ import annotations

from torch import Tensor, nn

from ddp_train.models.blocks import ImageShape, conv_norm_relu, init_weights, require_size

_GROUPS = 4
_LEAST_SIDE = 2**_GROUPS


class PowerCifarNet(nn.Module):
    """Four groups of two 3x3 convolutions, max-pooling and channel dropout; then three fully connected layers.

    The first group has int(64 x width_mult) channels, each further one twice as many. Each convolution
    has its own batch norm and ReLU: two with nothing between would be one linear map. `dropout` is the
    probability before the two last fully connected layers; whole channels are dropped (Dropout2d,
    arXiv 1411.4280) with a fifth of it after each group. Raises UserError for images under 16x16.
    """

    def __init__(
        self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, width_mult: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        require_size("power", image_shape, _LEAST_SIDE)
        channels, first = image_shape[0], int(64 * width_mult)
        groups: list[nn.Module] = []
        for group in range(_GROUPS):
            before, channels = channels, first << group
            layers = [*conv_norm_relu(before, channels), *conv_norm_relu(channels, channels)]
            groups.append(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout2d(dropout / 5)))
        self.features = nn.Sequential(*groups, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(channels, channels // 2),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(channels // 2, num_classes),
        )
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
