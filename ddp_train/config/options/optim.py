"""Options of the optimizer and of the gradient that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, option


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Optimization"""

    optimizer: Literal["sgd", "adam", "adamw", "muon"] = option(
        "sgd", "sgd: with Nesterov momentum; muon: for hidden matrices and kernels, --muon-rest for the rest."
    )
    lr: float | None = option(
        None,
        "Peak learning rate, for muon that of its matrices (default: by optimizer, for global batch 128, scaled by "
        "--lr-scaling).",
        Range(0, 1e4, exclusive=True),
    )
    lr_scaling: Literal["sqrt", "linear", "none"] | None = option(
        None, "Scale the learning rate with global batch / 128 (default: sqrt; none when --lr is given)."
    )
    momentum: float = option(0.9, "Momentum of sgd.", Range(0, 0.9999))
    beta1: float = option(0.9, "adam, adamw: decay of the mean of the gradients.", Range(0, 0.99999))
    beta2: float = option(0.999, "adam, adamw: decay of the mean of the squared gradients.", Range(0, 0.99999))
    eps: float = option(1e-8, "adam, adamw: added to the denominator.", Range(0, 1))
    amsgrad: bool = option(False, "adam, adamw: divide by the largest mean square so far.")
    muon_momentum: float = option(0.95, "muon: momentum of the matrices.", Range(0, 0.9999))
    muon_normalize: bool = option(
        False, "muon: scale each matrix to a fixed norm before its step, so that --lr is a share of the weights."
    )
    muon_iterations: int = option(5, "muon: Newton-Schulz iterations (3 are faster and coarser).", Range(1, 20))
    muon_rest: Literal["sgd", "adamw"] = option(
        "adamw", "muon: optimizer of biases, norms, embeddings, and the first and last layer."
    )
    muon_rest_lr: float | None = option(
        None,
        "muon: peak learning rate of the rest, scaled as --lr is (default: by --muon-rest).",
        Range(0, 1e4, exclusive=True),
    )
    weight_decay: float = option(
        5e-4, "Weight decay, for weights only: not for biases and normalisation parameters.", Range(0, 10)
    )
    sam: float | None = option(
        None,
        "Sharpness-aware minimisation: distance of the ascent before the gradient is computed (0.05 is usual).",
        Range(0, 100),
    )
    lookahead: int | None = option(
        None,
        "Lookahead: steps after which the slow weights move towards the trained ones (5 is usual).",
        Range(1, 10**6),
    )
    lookahead_alpha: float = option(
        0.5, "Lookahead: how far the slow weights move, as a fraction of the distance.", Range(0, 1, exclusive=True)
    )
    centralize_gradients: bool = option(False, "Subtract the mean from the gradient of each output of a weight.")
    clip_grad: float | None = option(
        None, "Largest norm of the gradient (default: no limit).", Range(0, 1e9, exclusive=True)
    )
