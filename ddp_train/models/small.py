"""SmallCifarNet: three convolutions and one hidden layer, for a CPU or a first run."""

from __future__ import annotations

from torch import Tensor, nn

from ddp_train.models.blocks import ImageShape, conv_norm_relu, init_weights, require_size

_CHANNELS = (32, 64, 128)
_HIDDEN = 512
_LEAST_SIDE = 2 ** len(_CHANNELS)


class SmallCifarNet(nn.Module):
    """Convolutions of 32, 64 and 128 channels, each with batch norm, ReLU and 2x2 max-pooling; 512 hidden units.

    About 1.15 million parameters on 3x32x32 images and 10 classes. No dropout unless asked for, so that the
    trajectory of a run does not depend on how a batch is cut over ranks. Raises UserError for images under 8x8.
    """

    def __init__(self, num_classes: int, image_shape: ImageShape = (3, 32, 32), *, dropout: float = 0.0) -> None:
        super().__init__()
        require_size("small", image_shape, _LEAST_SIDE)
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out_channels in _CHANNELS:
            layers += [*conv_norm_relu(channels, out_channels), nn.MaxPool2d(2)]
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (height // _LEAST_SIDE) * (width // _LEAST_SIDE), _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN, num_classes),
        )
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
