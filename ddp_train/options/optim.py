"""Options of the optimizer and of the gradient that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["OptimOptions"]


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Optimization"""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd is SGD with Nesterov momentum."""
    lr: float | None = None
    """Peak learning rate (None: by optimizer, at global batch 128, scaled as --lr-scaling says)."""
    lr_scaling: Literal["sqrt", "linear", "none"] | None = None
    """Scale the learning rate with global batch / 128 (None: sqrt, but none when --lr is given)."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Weight decay, on weights only: not on biases and normalisation parameters."""
    centralize_gradients: bool = False
    """Take the mean out of the gradient of each output of a weight."""
    clip_grad: float | None = None
    """Largest norm of the gradient; None does not clip."""
