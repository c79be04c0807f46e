"""Options of the learning rate over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, option


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
    ] = option(
        "cosine",
        "Learning rate over the run; auto: by global batch (from 256 warm_restarts, from 128 cosine, below multistep).",
    )
    warmup_epochs: float = option(
        1.0,
        "Epochs of linear warm-up from near zero; not for onecycle and triangular, which have a rise of their own.",
        Range(0, 10**6),
    )
    eta_min: float = option(0.0, "Lowest learning rate of cosine, warm_restarts, linear and plateau.", Range(0, 1e4))
    step_size: int = option(30, "step: epochs between two drops.", Range(1, 10**6))
    gamma: float | None = option(
        None,
        "Factor of a drop (default: 0.1); exponential: factor of each epoch (default: ends at 1% of the peak).",
        Range(0, 1, exclusive=True),
    )
    milestones: str = option("0.6,0.8", "multistep: where the drops are, as shares of the run (from 1 on: epochs).")
    t_0: int | None = option(
        None,
        "warm_restarts: epochs of the first cycle (default: such that the last cycle ends with the run).",
        Range(1, 10**6),
    )
    t_mult: int = option(2, "warm_restarts: each cycle is this many times as long as the one before.", Range(1, 100))
    pct_start: float = option(
        0.3, "onecycle, triangular: share of the run in which the rate rises.", Range(0, 0.99, exclusive=True)
    )
    patience: int = option(10, "plateau: epochs without a lower test loss before a drop.", Range(0, 10**6))
