"""The picture of a learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddp_train.plots.style import PALETTE, SOFT, legend, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["range_test_figure"]


def range_test_figure(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], steepest: float, suggestion: float
) -> Figure:
    """Loss over the learning rate, with the two rates marked."""
    figure = new_figure(9, 5, f"Learning-rate range test  ·  suggested peak {suggestion:.2g}")
    axes = figure.subplots()
    style(axes, "Loss", "mean per image", "learning rate")
    axes.set_xscale("log")
    axes.plot(rates, losses, color=SOFT, alpha=0.45, linewidth=1, label="each step")
    axes.plot(rates, smoothed, color=PALETTE[0], linewidth=2.2, label="smoothed")
    for rate, name, color in ((steepest, "steepest fall", PALETTE[2]), (suggestion, "suggested peak", PALETTE[1])):
        axes.axvline(rate, color=color, linewidth=1.6, linestyle="--", label=f"{name}: {rate:.2g}")
    high = max(smoothed[0], min(smoothed))
    low = min(loss for loss in (*losses, *smoothed) if math.isfinite(loss))
    axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.6 * (high - low) + 1e-6)
    legend(axes)
    return figure
