"""Options of regularisation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RegularizeOptions:
    """Regularisation"""

    label_smoothing: float = 0.0
    """Share of the target spread over the other classes."""
    stochastic_depth: float | None = None
    """Probability that a sample skips the last residual branch; earlier ones in proportion to their depth."""
    early_stopping: int | None = None
    """End the run after so many epochs without a better test accuracy."""
    min_delta: float = 0.0
    """early_stopping: what counts as better, as a difference of accuracies (fractions of 1)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is evaluated (0.999 is usual)."""
    ema_warmup: bool = False
    """ema: a shorter average in the first steps, (1 + step) / (10 + step)."""
    swa: float | None = None
    """Stochastic weight averaging from this share of the run on (a number from 1 on: epoch); the mean is evaluated."""
    swa_lr: float | None = None
    """swa: learning rate while averaging (None: half of the peak)."""
    swa_anneal: float = 1.0
    """swa: epochs in which the learning rate gets there."""
    technique: str | None = None
    """A technique of your own: package.module:function, more than one separated by commas."""
