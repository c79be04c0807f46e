"""Options of the optimizer and of the gradient that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Optimization"""

    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """sgd: with Nesterov momentum; muon: on hidden matrices and kernels, the rest as --muon-rest says."""
    lr: float | None = None
    """Peak learning rate (None: by optimizer, at global batch 128, scaled as --lr-scaling says); muon: of matrices."""
    lr_scaling: Literal["sqrt", "linear", "none"] | None = None
    """Scale the learning rate with global batch / 128 (None: sqrt, but none when --lr is given)."""
    momentum: float = 0.9
    """Momentum of sgd."""
    beta1: float = 0.9
    """adam, adamw: decay of the mean of the gradients."""
    beta2: float = 0.999
    """adam, adamw: decay of the mean of their squares."""
    eps: float = 1e-8
    """adam, adamw: added to the denominator."""
    amsgrad: bool = False
    """adam, adamw: divide by the largest mean square so far."""
    muon_momentum: float = 0.95
    """muon: momentum of the matrices."""
    muon_normalize: bool = False
    """muon: scale each matrix to a fixed norm before its step, so that --lr is a share of the weights."""
    muon_iterations: int = 5
    """muon: Newton-Schulz iterations (3 are faster and coarser)."""
    muon_rest: Literal["sgd", "adamw"] = "adamw"
    """muon: what trains biases, norms, embeddings, and the first and last layer."""
    muon_rest_lr: float | None = None
    """muon: peak learning rate of the rest (None: by --muon-rest), scaled as --lr is."""
    weight_decay: float = 5e-4
    """Weight decay, on weights only: not on biases and normalisation parameters."""
    sam: float | None = None
    """Sharpness-aware minimisation: length of the climb before the gradient is taken (0.05 is usual)."""
    lookahead: int | None = None
    """Steps after which slow weights meet the trained ones (5 is usual)."""
    lookahead_alpha: float = 0.5
    """lookahead: the part of the way that the slow weights go."""
    centralize_gradients: bool = False
    """Take the mean out of the gradient of each output of a weight."""
    clip_grad: float | None = None
    """Largest norm of the gradient; None does not clip."""
