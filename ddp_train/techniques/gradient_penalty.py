"""The gradient penalty of WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028), for training loops of your own.

Effect: holds the critic's gradient near length 1 between real and generated samples, in place of clipping its weights.
Cost: one more forward pass and a double backward. Not to be combined with batch norm in the critic: the penalty
is defined for each sample by itself. A library function; the bundled trainer classifies and has no critic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gradient_penalty"]


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    generated: Tensor,
    *,
    weight: float = 10.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """weight x mean((|gradient of the critic| - 1)^2) at random points between the samples: a scalar with a graph.

    real, generated: [n, ...] of one shape; critic: [n, ...] -> one score per sample, [n] or [n, 1]; generator: on the
    device of `real`. Errors: ValueError for different shapes.
    """
    if real.shape != generated.shape:
        raise ValueError(f"real {tuple(real.shape)} and generated {tuple(generated.shape)} samples differ in shape")
    shape = (len(real), *[1] * (real.ndim - 1))
    share = torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    between = (share * real + (1 - share) * generated).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    length = gradient.flatten(1).norm(dim=1)
    return weight * (length - 1).square().mean()
