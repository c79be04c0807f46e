"""What our own models share: image shapes, stem, residual block, head, and the initial weights.

Source of the blocks: He et al. 2016 (arXiv:1512.03385); pre-activation as in arXiv:1603.05027.
"""

from __future__ import annotations

from torch import Tensor, nn

from ddp_core.errors import UserError

ImageShape = tuple[int, int, int]
"""(channels, height, width)."""


def require_size(model: str, image_shape: ImageShape, least: int) -> None:
    """Raise UserError when an image is less than `least` pixels high or wide."""
    _, height, width = image_shape
    if min(height, width) < least:
        raise UserError(
            f"--model {model} cannot take {height}x{width} images: at least {least}x{least} pixels are needed"
        )


def conv_norm_relu(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution (its bias is batch norm's), batch norm and ReLU."""
    return [
        nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


class Residual(nn.Module):
    """after(shortcut(y) + drop(branch(y))) with y = before(x); each part but `branch` is the identity unless given.

    `drop` is there for stochastic depth, which puts a module without parameters into it. Use this class in a model of
    your own, and the technique finds its branches too.
    """

    def __init__(
        self,
        branch: nn.Module,
        *,
        shortcut: nn.Module | None = None,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.branch = branch
        self.drop: nn.Module = nn.Identity()
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: float [N, ...]; returns what `after` makes of the sum, float [N, ...]."""
        y = self.before(x)
        result: Tensor = self.after(self.shortcut(y) + self.drop(self.branch(y)))
        return result


def stem(in_channels: int, channels: int) -> nn.Sequential:
    """A 3x3 convolution without stride, batch norm and ReLU: for small images."""
    return nn.Sequential(*conv_norm_relu(in_channels, channels))


def head(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """The mean over each channel's image, dropout, and one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, num_classes))


def basic_block(in_channels: int, channels: int, stride: int = 1) -> Residual:
    """Two 3x3 convolutions, each with batch norm, and ReLU after the first and after the sum.

    Where the shape changes the shortcut is a 1x1 convolution with batch norm.
    """
    shortcut = None
    if stride != 1 or in_channels != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
        )
    branch = nn.Sequential(
        *conv_norm_relu(in_channels, channels, stride),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    return Residual(branch, shortcut=shortcut, after=nn.ReLU(inplace=True))


def init_weights(model: nn.Module) -> None:
    """He's normal initialisation before ReLU (arXiv 1502.01852); a near-zero last layer.

    With the last layer near zero all classes start equally likely: the first loss is ln(num_classes).
    """
    last: nn.Linear | None = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            last = module
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    if last is not None:
        nn.init.normal_(last.weight, std=0.01)
