"""What our own models share: image shapes, the residual block and the initial weights."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from ddp_core.errors import UserError

ImageShape = tuple[int, int, int]
"""(channels, height, width)."""


def require_size(model: str, image_shape: ImageShape, least: int) -> None:
    """Raise UserError when an image is less than `least` pixels high or wide."""
    _, height, width = image_shape
    if min(height, width) < least:
        need = f"at least {least}x{least} pixels are needed"
        raise UserError(f"--model {model} cannot take {height}x{width} images: {need}")


def conv_norm_relu(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution without bias (batch norm has one), batch norm and ReLU."""
    return [
        nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


def conv_norm_pool_relu(in_channels: int, channels: int) -> list[nn.Module]:
    """Like conv_norm_relu, with 2x2 max-pooling before ReLU: the result is the same as after it, forward and backward
    to the bit, and ReLU has a quarter of the work."""
    *layers, relu = conv_norm_relu(in_channels, channels)
    return [*layers, nn.MaxPool2d(2), relu]


class Residual(nn.Module):
    """after(shortcut(y) + drop(branch(y))) with y = before(x); each part but `branch` is the identity unless given.

    `drop` is for stochastic depth, which replaces it by a module without parameters. Use this class in your own model,
    and the technique finds its branches too.
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
        return self.after(self.shortcut(y) + self.drop(self.branch(y)))


def init_weights(model: nn.Module) -> None:
    """He's normal initialisation before ReLU (arXiv 1502.01852); a near-zero last layer.

    With the last layer near zero all classes start equally likely: the first loss is ln(num_classes).
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        mode: Literal["fan_out", "fan_in"] = "fan_out" if isinstance(layer, nn.Conv2d) else "fan_in"
        nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    nn.init.normal_(layers[-1].weight, std=0.01)


class UncountedBatchNorm(nn.BatchNorm2d):
    """Batch norm that counts its batches only if its momentum depends on their number: saves an operation."""

    def forward(self, input: Tensor) -> Tensor:
        """Batch norm; the count of batches is left alone, since a fixed momentum does not need it."""
        if self.momentum is None or not self.training:
            return super().forward(input)
        statistics = self.running_mean, self.running_var
        return functional.batch_norm(input, *statistics, self.weight, self.bias, True, self.momentum, self.eps)
