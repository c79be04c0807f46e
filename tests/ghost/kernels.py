"""What torch computes on CUDA alone: the five steps of batch norm over all ranks, by their formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .install import Ghost


def patch(ghost: Ghost) -> None:
    """Let torch.nn.SyncBatchNorm run."""
    for function in (
        batch_norm_stats,
        batch_norm_elemt,
        batch_norm_gather_stats_with_counts,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    ):
        ghost.patches.replace(torch, function.__name__, function)


def _others(input: Tensor) -> list[int]:
    return [dim for dim in range(input.dim()) if dim != 1]


def _wide(values: Tensor, input: Tensor) -> Tensor:
    """One value a channel, for each place of `input` [n, C, ...]."""
    return values.view(1, -1, *[1] * (input.dim() - 2))


def batch_norm_stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each channel."""
    variance, mean = torch.var_mean(input.float(), dim=_others(input), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    out = (input - _wide(mean, input)) * _wide(invstd, input)
    out = out if weight is None else out * _wide(weight, input)
    return (out if bias is None else out + _wide(bias, input)).to(input.dtype)


def batch_norm_gather_stats_with_counts(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation over the ranks: mean, invstd [ranks, C], counts [ranks]; running estimates move."""
    counts = counts.view(-1, 1).to(mean.dtype)
    total = counts.sum()
    joined = (mean * counts).sum(0) / total
    squares = (invstd.pow(-2) - eps + mean.square()) * counts
    variance = squares.sum(0) / total - joined.square()
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(joined.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * total / (total - 1)).to(running_var.dtype), momentum)
    return joined, (variance + eps).rsqrt()


def batch_norm_backward_reduce(
    grad: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dims = _others(input)
    sum_dy = grad.float().sum(dims)
    sum_dy_xmu = (grad * (input - _wide(mean, input))).float().sum(dims)
    return sum_dy, sum_dy_xmu, (sum_dy_xmu * invstd), sum_dy.clone()


def batch_norm_backward_elemt(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
    *rest: Any,
) -> Tensor:
    total = count.sum()
    centred = input - _wide(mean, input)
    slope = _wide(invstd if weight is None else invstd * weight, input)
    pull = centred * _wide(invstd.square() * sum_dy_xmu / total, input)
    return ((grad - _wide(sum_dy / total, input) - pull) * slope).to(input.dtype)
