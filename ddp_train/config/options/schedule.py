"""Options of the learning rate over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Learning-rate schedule"""

    scheduler: Literal[
        "step",
        "multistep",
        "exponential",
        "cosine",
        "warm_restarts",
        "onecycle",
        "plateau",
        "linear",
        "triangular",
        "constant",
        "auto",
    ] = "cosine"
    """Learning rate over the run; auto: by global batch (256 and more warm_restarts, 128 cosine, below multistep)."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up from near zero; onecycle and triangular have a rise of their own."""
    eta_min: float = 0.0
    """Lowest learning rate of cosine, warm_restarts, linear and plateau."""
    step_size: int = 30
    """step: epochs between two falls."""
    gamma: float | None = None
    """Factor of a fall (None: 0.1); exponential: factor of each epoch (None: 1% of the peak at the end)."""
    milestones: str = "0.6,0.8"
    """multistep: where the falls are, as shares of the run (numbers from 1 on: epochs)."""
    t_0: int | None = None
    """warm_restarts: epochs of the first cycle (None: such that the last cycle ends with the run)."""
    t_mult: int = 2
    """warm_restarts: how many times as long each cycle is as the one before."""
    pct_start: float = 0.3
    """onecycle, triangular: share of the run in which the rate rises."""
    patience: int = 10
    """plateau: epochs without a lower test loss before a fall."""
