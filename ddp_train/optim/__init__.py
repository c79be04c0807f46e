"""The optimizer factory: which parameters decay, and with which optimizer they are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ddp_train.options import OptimOptions

__all__ = ["create_optimizer", "parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels decay; biases and normalisation parameters (one dimension or none) do not.

    Source: He et al. 2019, "Bag of Tricks" (arXiv:1812.01187), section 3.1.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(
    model: nn.Module, options: OptimOptions, learning_rate: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer that `options` names, at peak `learning_rate`; fused on a GPU, one foreach pass elsewhere."""
    groups = parameter_groups(model, options.weight_decay)
    speed: dict[str, Any] = {"fused": True} if device.type == "cuda" else {"foreach": True}
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, **speed)
    else:
        # Nesterov momentum is defined for a positive momentum only.
        optimizer = torch.optim.SGD(
            groups, lr=learning_rate, momentum=options.momentum, nesterov=options.momentum > 0, **speed
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = learning_rate
    return optimizer
