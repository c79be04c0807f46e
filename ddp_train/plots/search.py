"""The picture of a search: the score over each option that was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ddp_train.plots.style import INK, PALETTE, SOFT, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["search_figure"]

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
