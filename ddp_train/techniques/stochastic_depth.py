"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training a sample skips some residual branches.

The l-th of L branches is dropped with probability l / L x P, for each sample by itself, and a kept branch is divided by
the probability of being kept, so that evaluation needs no factor. Effect: a deep network is regularised, and trains as
a shorter one. Cost: one small draw and a product for each branch; dropped branches are computed all the same. Like
dropout, it draws from the step's own seed, so that a resume needs no generator. Only models with residual branches
have something to drop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.models import Residual
from ddp_train.technique import Context, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--stochastic-depth P`. Errors: UserError for a model without residual branches."""
    last = context.config.regularize.stochastic_depth
    assert last is not None
    places = [m for m in context.network.modules() if isinstance(m, Residual) or _is_torchvisions(m)]
    if last > 0 and not places:
        raise UserError(
            f"--stochastic-depth {last:g}: --model {context.config.model.model} has no residual branches; residual, "
            "wideresnet, resnet18 and vit have, torchvision's convnext, efficientnet, swin and maxvit, and a model of "
            "yours that uses ddp_train.models.Residual"
        )

    def edit(network: nn.Module) -> nn.Module:
        """Give each residual branch its drop probability."""
        for index, place in enumerate(places, start=1):
            probability = last * index / len(places)
            if isinstance(place, Residual):
                place.drop = DropBranch(probability)
            else:
                place.p = probability  # type: ignore[assignment]
        return network

    return Technique(name="stochastic_depth", edit=edit)


class DropBranch(nn.Module):
    """In training, zero for a sample with `probability` (below 1), else the branch divided by 1 - probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """branch: float [N, ...]; returns the same shape."""
        if not self.training or self.probability == 0:
            return branch
        kept = 1 - self.probability
        mask = torch.empty((len(branch), *(1,) * (branch.ndim - 1)), dtype=branch.dtype, device=branch.device)
        return branch * mask.bernoulli_(kept).div_(kept)

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"probability={self.probability:g}"


def _is_torchvisions(module: nn.Module) -> bool:
    """Whether this is torchvision's layer of this kind; by name, since importing torchvision takes seconds."""
    kind = type(module)
    return kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision.")
