"""SpeedrunNet: the network of the fastest known CIFAR-10 runs, at any width.

A frozen first layer turns 2x2 patches into coordinates that are uncorrelated and of similar size, in both signs; three
groups of two 3x3 convolutions follow, which start as the identity; batch norm trains biases alone; the last layer is
linear, and its output is scaled down. Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU"
(arXiv:2404.00498), sections 3.1 to 3.4; the whitening is Page's (2018, "How to train your ResNet"). GELU is
replaced by its approximation x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415), as SiLU of 1.702 x: the
exact one takes a CPU longer than the convolutions.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddp_core.errors import UserError
from ddp_train.models.blocks import ImageShape, Residual, UncountedBatchNorm, require_size

_CHANNELS = {2: (64, 256, 256), 3: (64, 192, 256)}
"""Channels of the three groups, by the number of convolutions in a group."""
_PATCH = 2
_LEAST_SIDE = 2 ** len(_CHANNELS[2]) + 1  # the first layer takes one pixel, each group halves
_LEAST_VARIANCE = 5e-4
"""Added to the variances of the patches, whose images have variance 1, so that faint directions stay faint."""
_STATISTICS_MOMENTUM = 0.4
"""Momentum of batch norm's running estimates, which must keep up with a run of a few hundred steps."""
_HEAD_DEVIATION = 0.48
"""Deviation of the last layer's initial weights; the output's scale divides by it, so they bear the biases' rate."""
_SLOPE = 1.702
"""Factor on the input in GELU's approximation; batch norm and the output's scale remove it after the SiLU."""


class SpeedrunNet(nn.Module):
    """Groups of 64, 256 and 256 channels times `width_mult`; about 1.97 million trained parameters at 1.

    n_layers: convolutions of a group. With 3, as in airbench's network for 96%, the groups have 64, 192 and 256
    channels, and the last two of each are a residual branch. Until `init_from_data` has been called the first layer is
    a random rotation of the patches. Raises UserError for images under 9x9.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: ImageShape = (3, 32, 32),
        *,
        width_mult: float = 1.0,
        n_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if n_layers not in _CHANNELS:
            raise UserError(f"--n-layers {n_layers}: a group of speedrun has 2 or 3 convolutions")
        require_size("speedrun", image_shape, _LEAST_SIDE)
        channels, height, width = image_shape
        directions = channels * _PATCH**2
        self.whiten = nn.Conv2d(channels, 2 * directions, _PATCH)
        self.whiten.weight.requires_grad = False
        kernels = torch.empty(directions, directions)
        self._set_kernels(nn.init.orthogonal_(kernels).view(directions, channels, _PATCH, _PATCH))
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.trains_whiten, self.zero_for_whiten = True, False
        """Whether the first layer is in the autograd graph; if not, whether its bias gets a gradient of zero."""
        layers: list[nn.Module] = [nn.SiLU()]
        inside, side = 2 * directions, min(height, width) - 1
        for full in _CHANNELS[n_layers]:
            outside = int(full * width_mult)
            if outside < 1:
                raise UserError(f"--width-mult {width_mult}: leaves a layer of speedrun without a channel")
            layers += [_convolution(inside, outside), nn.MaxPool2d(2), _norm(outside), nn.SiLU()]
            branch = [_convolution(outside, outside), _norm(outside)]
            if n_layers == 3:
                branch += [nn.SiLU(), _convolution(outside, outside), _norm(outside)]
                branch = [Residual(nn.Sequential(*branch))]
            layers += [*branch, nn.SiLU()]
            inside, side = outside, side // 2
        self.layers = nn.Sequential(*layers, GlobalMaxPool(), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(inside, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=_HEAD_DEVIATION)
        self.scale = 1 / (_HEAD_DEVIATION * inside * _SLOPE)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W]; returns logits [N, num_classes]."""
        with contextlib.nullcontext() if self.trains_whiten else torch.no_grad():
            patches = self.whiten(images)
        logits: Tensor = self.head(self.layers(patches)) * self.scale
        if not self.trains_whiten and self.zero_for_whiten and self.whiten.bias is not None:
            logits = logits + 0.0 * self.whiten.bias.sum()
        return logits

    @torch.no_grad()
    def init_from_data(self, images: Tensor) -> None:
        """Set the first layer from some training images, float [n, C, H, W], normalised."""
        self._set_kernels(whitening_kernels(images, _PATCH))

    @torch.no_grad()
    def _set_kernels(self, kernels: Tensor) -> None:
        """Set the whitening convolution."""
        self.whiten.weight.copy_(_SLOPE * torch.cat([kernels, -kernels]))


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: [n, C, H, W] -> [n, C, 1, 1].

    The values and the gradient are those of torch's AdaptiveMaxPool2d(1), whose backward pass on a GPU adds up in a
    nondeterministic order and is refused under --reproducible.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: float [n, C, H, W]."""
        return functional.max_pool2d(x, x.shape[-2:])


@torch.no_grad()
def whitening_kernels(images: Tensor, patch: int) -> Tensor:
    """Kernels whose outputs are uncorrelated and of variance 1 over the patches of `images`, largest variance last.

    images: float [n, C, H, W]. Returns float32 [C * patch * patch, C, patch, patch] on their device.
    """
    channels = images.shape[1]
    flat = images.double().unfold(2, patch, 1).unfold(3, patch, 1).permute(0, 2, 3, 1, 4, 5)
    flat = flat.reshape(-1, channels * patch * patch)
    variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
    # The sign of an eigenvector is arbitrary: choose the one that makes its largest entry positive.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign() / (variances + _LEAST_VARIANCE).sqrt()
    return directions.T.reshape(-1, channels, patch, patch).float()


def _convolution(inside: int, outside: int) -> nn.Conv2d:
    """A 3x3 convolution without bias; initially its first `inside` outputs are the inputs themselves."""
    convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    bound = 1 / math.sqrt(9 * inside)
    nn.init.uniform_(convolution.weight, -bound, bound)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:inside])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with a trained bias and a fixed weight."""
    norm = UncountedBatchNorm(channels, momentum=_STATISTICS_MOMENTUM)
    nn.init.constant_(norm.weight, _SLOPE)
    norm.weight.requires_grad = False
    return norm
