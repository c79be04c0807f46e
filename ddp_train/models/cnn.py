"""Plain convolutional networks: a small one for a CPU or a first run, and a VGG-like one of adjustable width."""

from __future__ import annotations

from torch import Tensor, nn

from ddp_train.models.blocks import ImageShape, conv_norm_pool_relu, conv_norm_relu, init_weights, require_size


class _ConvolutionalNetwork(nn.Module):
    features: nn.Sequential
    classifier: nn.Sequential

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        return self.classifier(self.features(images))


class SmallCifarNet(_ConvolutionalNetwork):
    """Convolutions of 32, 64 and 128 channels, each with batch norm, 2x2 max-pooling and ReLU; 512 hidden units.

    About 1.15 million parameters on 3x32x32 images and 10 classes. No dropout unless asked for, so that the
    trajectory of a run does not depend on how a batch is cut over ranks. Raises UserError for images under 8x8.
    """

    def __init__(self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, dropout: float = 0.0) -> None:
        super().__init__()
        require_size("small", image_shape, 8)
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out_channels in (32, 64, 128):
            layers += conv_norm_pool_relu(channels, out_channels)
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (height // 8) * (width // 8), 512),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(512, num_classes),
        )
        init_weights(self)


class PowerCifarNet(_ConvolutionalNetwork):
    """Four groups of two 3x3 convolutions, max-pooling and channel dropout; then three fully connected layers.

    The first group has int(64 x width_mult) channels, each further one twice as many. Each convolution
    has its own batch norm and ReLU: two with nothing between would be one linear map. `dropout` is the
    probability before the last two fully connected layers; whole channels are dropped (Dropout2d,
    arXiv 1411.4280) with a fifth of it after each group. Raises UserError for images under 16x16.
    """

    def __init__(
        self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, width_mult: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        require_size("power", image_shape, 16)
        channels, first = image_shape[0], int(64 * width_mult)
        groups: list[nn.Module] = []
        for group in range(4):
            before, channels = channels, first << group
            layers = [*conv_norm_relu(before, channels), *conv_norm_pool_relu(channels, channels)]
            groups.append(nn.Sequential(*layers, nn.Dropout2d(dropout / 5)))
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
