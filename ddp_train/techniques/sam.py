"""Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412): the gradient is taken uphill, at w + e(w).

A step computes the gradient g at w, climbs by e(w) = RHO * g / |g|, and computes the gradient there, with which the
optimizer steps from w. Effect: flatter minima, which generalise better. Cost: two forward and backward passes a step,
and a copy of the weights.

Each rank climbs along the gradient of its own part of the global batch, as in the paper ("m-sharpness", which it finds
to work better than the global one): the first pass is without communication, and only the second is all-reduced. So
a run on two ranks differs from a run on one rank, by design. Under fp16 the climb needs no unscaling, since only
the direction of the first gradient counts; a first gradient that overflowed makes the second one overflow, and the step
is skipped. Buffers (batch statistics) stay as the first pass left them. Dropout is the same in both passes.

Not to be combined with another technique that takes a step of its own. Clipping and centralisation act on the second
gradient alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from ddp_train.buffers import CurrentBuffers
from ddp_train.technique import Context, Gradients, Technique

LEAST_NORM = 1e-12


def create(context: Context) -> Technique:
    """Create the technique of `--sam RHO`."""
    rho = context.config.optim.sam
    assert rho is not None
    return uphill(context.network, rho)


def uphill(network: nn.Module, rho: float) -> Technique:
    """SAM for the parameters of `network`, with radius `rho`."""
    return Technique(name="sam", update=_Sam(network, rho))


class _Sam:
    def __init__(self, network: nn.Module, rho: float) -> None:
        self._network, self._rho = network, rho

    def __call__(self, gradients: Gradients, apply: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
        gradients(communicate=False)
        moved = [p for p in self._network.parameters() if p.grad is not None]
        weights = [p.detach().clone() for p in moved]
        buffers = CurrentBuffers(self._network)
        statistics = [b.clone() for b in buffers.tensors]
        climb(moved, self._rho)
        optimizer.zero_grad(set_to_none=True)
        try:
            gradients(count=False)
        finally:
            buffers.put(buffers.tensors)
            with torch.no_grad():
                # Copied back, not subtracted: the values are the same bit for bit.
                for target, source in zip((*moved, *buffers.tensors), (*weights, *statistics), strict=True):
                    target.copy_(source)
        apply()


@torch.no_grad()
def climb(parameters: Sequence[nn.Parameter], rho: float) -> None:
    """Add rho * g / |g| to the parameters, where g are their gradients and |g| is the norm over all gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return  # a rank without samples in this step
    scale = rho / get_total_norm(gradients).clamp_min(LEAST_NORM)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.add_(parameter.grad * scale)
