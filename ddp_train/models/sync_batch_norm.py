"""Batch norm over the samples of all ranks, each counted once, however unequal the ranks' shares are.

torch's own SyncBatchNorm weights by count too, but runs on GPUs only; where it does not, the same is done here with one
all-reduce of (count, sum, sum of squares) forward and one of the gradient's sums backward (Ioffe and Szegedy 2015,
arXiv:1502.03167, with the batch spread over processes). The running estimates are the same on every rank at every step.
Every rank must make equally many forward passes, with an empty batch where it has no sample (see Pipeline).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddp_train.models.blocks import UncountedBatchNorm
from ddp_train.torch_internals import sync_batch_norm

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""torch's classes of batch norm; SynchronisedBatchNorm is a subclass of the first."""


class SynchronisedBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d, 2d or 3d whose statistics in training are those of all ranks' samples; same parameters and names.

    Not torch's SyncBatchNorm by class: DistributedDataParallel refuses that one on a CPU.
    """

    alone = False
    """Leave the other ranks out: for measurements that each rank makes for itself (see `alone`)."""

    def forward(self, input: Tensor) -> Tensor:
        """input: float [n, C, ...], n may be 0 on some of the ranks, but not on all."""
        if not self.training or self.alone or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        factor = self.momentum
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            if factor is None:  # the plain mean over all batches so far
                factor = 1.0 / self.num_batches_tracked.item()
        by_torch = sync_batch_norm() if input.device.type == "cuda" else None
        if by_torch is not None:  # torch's kernels keep the running estimates too
            own = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
            among = (dist.group.WORLD, dist.get_world_size())
            return by_torch(input, self.weight, self.bias, *own, self.eps, factor or 0.0, *among)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None and factor is not None
            unbiased = variance * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        """Errors: ValueError for inputs without channels."""
        if input.ndim < 2:
            raise ValueError(f"batch norm takes [n, C, ...], not {input.ndim} dimension(s)")


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the samples of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output like x; mean and (biased) variance float64 [C], count float64 []: the same on every rank."""
        given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        channels, dims = x.shape[1], [0, *range(2, x.ndim)]
        own = x.numel() // channels
        # Computed from the mean and variance of the rank's own samples, in float64: sums of squares in float32 lose
        # their precision where the mean is large.
        if own:
            spread, centre = torch.var_mean(x, dims, correction=0)
            centre, spread = centre.double(), spread.double()
        else:
            centre = spread = torch.zeros(channels, dtype=torch.float64, device=x.device)
        squares = (spread + centre.square()) * own
        sums = torch.cat([torch.tensor([own], dtype=torch.float64, device=x.device), centre * own, squares])
        dist.all_reduce(sums)
        count = sums[0]
        if count < 2:
            raise ValueError("batch norm needs at least two values per channel over all ranks")
        mean = sums[1 : channels + 1] / count
        variance = (sums[channels + 1 :] / count - mean.square()).clamp_(min=0)
        scale = (variance + eps).rsqrt()
        normed = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        ctx.save_for_backward(normed, weight, scale)
        ctx.count, ctx.has_bias = count, bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        output = normed
        if weight is not None and bias is not None:
            output = torch.addcmul(_per_channel(bias, x), normed, _per_channel(weight, x))
        return output.to(given), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the sum of all ranks' losses with respect to x; of this rank's with respect to the rest."""
        given, gradient = gradients[0].dtype, gradients[0].to(ctx.saved_tensors[0].dtype)
        normed, weight, scale = ctx.saved_tensors
        dims = [0, *range(2, gradient.ndim)]
        of_bias, of_weight = gradient.sum(dims), (gradient * normed).sum(dims)
        sums = torch.stack([of_bias, of_weight]).double()
        dist.all_reduce(sums)
        mean, projection = (_per_channel(part / ctx.count, gradient) for part in sums)
        factor = scale if weight is None else scale * weight
        of_x = (gradient - mean - normed * projection) * _per_channel(factor, gradient)
        return of_x.to(given), of_weight if weight is not None else None, of_bias if ctx.has_bias else None, None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values [C] to be used with `like` [n, C, ...], in its precision."""
    return values.to(like.dtype).view(1, -1, *[1] * (like.ndim - 2))


def synchronise(network: nn.Module) -> int:
    """Make every BatchNorm1d, 2d and 3d of `network` use the samples of all ranks; returns how many there are.

    In place, by a change of the modules' class: parameters, buffers and names stay the same.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, UncountedBatchNorm)
    found = [m for m in network.modules() if type(m) in kinds]  # a subclass of a user's may compute something else
    for module in found:
        module.__class__ = SynchronisedBatchNorm
    return len(found)


@contextlib.contextmanager
def alone(network: nn.Module) -> Iterator[None]:
    """Inside, forward passes of this rank wait for no other: each normalises by its own samples."""
    norms = [m for m in network.modules() if isinstance(m, SynchronisedBatchNorm)]
    for norm in norms:
        norm.alone = True
    try:
        yield
    finally:
        for norm in norms:
            norm.alone = False
