"""The picture of a learning-rate range test.

The picture of a batch finder's trials.

The picture of a search: the score over each option that was varied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ddp_train.plots.style import INK, PALETTE, SOFT, legend, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def batch_size_figure(
    batches: Sequence[int],
    speeds: Sequence[float],
    peaks: Sequence[tuple[int, float]],
    limit: float | None,
    recommended: int,
) -> Figure:
    """Throughput (images/s over all ranks) and memory (MiB) over the per-rank batch; `limit` in MiB where known."""
    figure = new_figure(10, 4.5, f"Batch finder  ·  {recommended:,} per rank recommended")
    left, right = figure.subplots(1, 2)
    style(left, "Throughput", "images/s", "per-rank batch")
    left.set_xscale("log", base=2)
    left.plot(batches, speeds, color=PALETTE[0], marker="o", linewidth=2.2)
    left.axvline(recommended, color=PALETTE[1], linewidth=1.6, linestyle="--", label="recommended")
    left.set_ylim(0, 1.1 * max(speeds, default=1.0))
    left.xaxis.set_major_formatter("{x:,.0f}")
    legend(left)
    style(right, "Peak memory", "MiB", "per-rank batch")
    right.plot([batch for batch, _ in peaks], [mib for _, mib in peaks], color=PALETTE[2], marker="o", linewidth=2.2)
    if limit is not None and peaks and limit < 4 * max(mib for _, mib in peaks):
        right.axhline(limit, color=PALETTE[1], linewidth=1.6, linestyle="--", label="all there is")
        legend(right)
    right.set_ylim(0, 1.1 * max([mib for _, mib in peaks], default=1.0))
    return figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
WIDE = 10.0
"""Largest over smallest value from which an axis is logarithmic."""


def search_figure(trials: Sequence[tuple[Mapping[str, object], float | None, int]]) -> Figure:
    """trials: (values, score or None, epochs), the best first. One panel per option with more than one value."""
    from matplotlib.ticker import PercentFormatter

    scored = [(values, score, epochs) for values, score, epochs in trials if score is not None]
    names = [name for name in scored[0][0] if len({str(values[name]) for values, _, _ in scored}) > 1]
    names = names or list(scored[0][0])[:1]
    rows = -(-len(names) // COLUMNS)
    title = f"Search  ·  {len(trials)} trials, best {scored[0][1]:.2%}"
    figure = new_figure(4 * min(COLUMNS, len(names)) + 0.5, 3 * rows + 0.7, title)
    longest = max(epochs for _, _, epochs in scored)
    for name, panel in zip(
        names, figure.subplots(rows, min(COLUMNS, len(names)), squeeze=False).flatten(), strict=False
    ):
        style(panel, name.replace("_", "-"), "test accuracy")
        places = _places(panel, [values[name] for values, _, _ in scored])
        for (_, score, epochs), place in reversed(list(zip(scored, places, strict=True))):
            ended = epochs < longest
            panel.plot(
                [place], [score], "o", markersize=5 if ended else 8, color=SOFT if ended else PALETTE[0], alpha=0.8
            )
        panel.plot([places[0]], [scored[0][1]], "*", markersize=17, color=PALETTE[1], markeredgecolor="white")
        panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for panel in figure.axes[len(names) :]:
        panel.set_axis_off()
    figure.supxlabel("star: the best; small and grey: ended early", fontsize=9, color=INK)
    return figure


def _places(panel: object, values: Sequence[object]) -> list[float]:
    """Where the values stand on the axis: numbers as they are, others side by side."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]  # type: ignore[arg-type]
        if min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE:
            panel.set_xscale("log")  # type: ignore[attr-defined]
        return numbers
    names = sorted({str(value) for value in values})
    panel.set_xticks(range(len(names)), names)  # type: ignore[attr-defined]
    panel.set_xlim(-0.5, len(names) - 0.5)  # type: ignore[attr-defined]
    return [float(names.index(str(value))) for value in values]
