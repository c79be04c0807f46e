"""Options of regularisation."""

from __future__ import annotations

from dataclasses import dataclass

from ddp_train.config.declaration import Range, When, option


@dataclass(frozen=True, kw_only=True)
class RegularizeOptions:
    """Regularisation"""

    label_smoothing: float = option(0.0, "Share of the target that is spread over the other classes.", Range(0, 0.99))
    stochastic_depth: float | None = option(
        None,
        "Probability that a sample skips the last residual branch; lower for earlier branches, in proportion to depth.",
        Range(0, 0.99),
    )
    early_stopping: int | None = option(
        None, "Stop after this many epochs without a better test accuracy.", Range(1, 10**6)
    )
    min_delta: float = option(
        0.0, "Smallest increase of the accuracy (fraction of 1) that --early-stopping counts as better.", Range(0, 1)
    )
    ema: float | None = option(
        None,
        "Evaluate an exponential moving average of the weights with this decay (0.999 is usual).",
        Range(0, 0.99999),
        excludes={When("swa"): "each evaluates an average of its own"},
    )
    ema_warmup: bool = option(False, "ema: a shorter average in the first steps, (1 + step) / (10 + step).")
    swa: float | None = option(
        None,
        "Stochastic weight averaging from this share of the run on (from 1 on: epoch); the mean is evaluated.",
        Range(0, 10**6),
    )
    swa_lr: float | None = option(
        None, "swa: learning rate while averaging (default: half of the peak).", Range(0, 1e4, exclusive=True)
    )
    swa_anneal: float = option(1.0, "swa: epochs over which the learning rate moves to --swa-lr.", Range(0, 10**6))
    technique: str | None = option(
        None, "A technique of your own: package.module:function; separate several by commas."
    )
