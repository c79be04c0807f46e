"""Pictures of tuning: a learning-rate range test, a batch finder's trials, and a search's scores over each option."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddp_train.plots.style import INK, PALETTE, SOFT, grid_of_panels, legend, new_figure, percent_axis, short, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHED: dict[str, Any] = {"linewidth": 1.6, "linestyle": "--"}
COLUMNS = 3
LOG_FROM = 10.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


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
        axes.axvline(rate, color=color, label=f"{name}: {rate:.2g}", **DASHED)
    high = max(smoothed[0], min(smoothed))
    low = min(loss for loss in (*losses, *smoothed) if math.isfinite(loss))
    axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.6 * (high - low) + 1e-6)
    legend(axes)
    return figure


def batch_size_figure(
    speeds: Sequence[tuple[int, float]], peaks: Sequence[tuple[int, float]], limit: float | None, recommended: int
) -> Figure:
    """Throughput (images/s over all ranks) and memory (MiB) by per-rank batch; `limit` in MiB where known."""
    figure = new_figure(10, 4.5, f"Batch finder  ·  {recommended:,} per rank recommended")
    left, right = figure.subplots(1, 2)
    style(left, "Throughput", "images/s", "per-rank batch")
    left.set_xscale("log", base=2)
    left.plot(*zip(*speeds, strict=True), color=PALETTE[0], marker="o", linewidth=2.2)
    left.axvline(recommended, color=PALETTE[1], label="recommended", **DASHED)
    left.set_ylim(0, 1.1 * max([speed for _, speed in speeds], default=1.0))
    left.xaxis.set_major_formatter("{x:,.0f}")
    legend(left)
    style(right, "Peak memory", "MiB", "per-rank batch")
    right.plot(*zip(*peaks, strict=True), color=PALETTE[2], marker="o", linewidth=2.2)
    if limit is not None and peaks and limit < 4 * max(mib for _, mib in peaks):
        right.axhline(limit, color=PALETTE[1], label="memory limit", **DASHED)
        legend(right)
    right.set_ylim(0, 1.1 * max([mib for _, mib in peaks], default=1.0))
    return figure


def search_figure(trials: Sequence[tuple[Mapping[str, object], float | None, int]]) -> Figure:
    """trials: (values, score or None, epochs), the best first. One panel per option with more than one value."""
    scored = [(values, score, epochs) for values, score, epochs in trials if score is not None]
    names = [name for name in scored[0][0] if len({str(values[name]) for values, _, _ in scored}) > 1]
    names = names or list(scored[0][0])[:1]
    rows, columns = -(-len(names) // COLUMNS), min(COLUMNS, len(names))
    title = f"Search  ·  {len(trials)} trials, best {scored[0][1]:.2%}"
    figure, panels = grid_of_panels(4 * columns + 0.5, 3 * rows + 0.7, title, rows, columns, len(names))
    longest = max(epochs for _, _, epochs in scored)
    for name, panel in zip(names, panels, strict=True):
        style(panel, name.replace("_", "-"), "test accuracy")
        places = _places(panel, [values[name] for values, _, _ in scored])
        for (_, score, epochs), place in reversed(list(zip(scored, places, strict=True))):
            size, color = (5, SOFT) if epochs < longest else (8, PALETTE[0])
            panel.plot([place], [score], "o", markersize=size, color=color, alpha=0.8)
        panel.plot([places[0]], [scored[0][1]], "*", markersize=17, color=PALETTE[1], markeredgecolor="white")
        percent_axis(panel)
    figure.supxlabel("star: the best; small and grey: ended early", fontsize=9, color=INK)
    return figure


def _places(panel: Axes, values: Sequence[object]) -> list[float]:
    """Positions of the values on the axis: numbers as they are, others side by side."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]  # type: ignore[arg-type]
        if min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_FROM:
            panel.set_xscale("log")
        return numbers
    names = sorted({str(value) for value in values})
    panel.set_xticks(range(len(names)), [short(name) for name in names])
    panel.set_xlim(-0.5, len(names) - 0.5)
    return [float(names.index(str(value))) for value in values]
