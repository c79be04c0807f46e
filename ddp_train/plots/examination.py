"""The confusion matrix: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ddp_train.plots.style import INK, SOFT, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLASSES_UP_TO", "confusion_figure"]

CLASSES_UP_TO = 60
"""More classes make a picture that nobody can read."""
NUMBERS_UP_TO = 20
LEVEL_UP_TO = 3
"""Classes up to which each cell bears its percentage."""


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Rows are the true classes, columns what they were taken for, in percent of the row; the diagonal is right."""
    import numpy as np

    counts = np.asarray(confusion, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = max(6.5, min(20, 2.5 + 0.62 * len(classes))) if len(classes) <= NUMBERS_UP_TO else 16
    accuracy = counts.trace() / max(1.0, counts.sum())
    figure = new_figure(size + 0.8, size, f"Confusion matrix  ·  {int(counts.sum()):,} images, {accuracy:.2%} right")
    axes = figure.subplots()
    style(axes, "", "percent of each true class", "taken for")
    axes.grid(False)
    # The square root keeps rare mistakes visible beside the diagonal.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    axes.spines["bottom"].set_visible(False)
    small = 10 if len(classes) <= NUMBERS_UP_TO else 7
    places = range(len(classes))
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    turned = turned if max(map(len, classes)) > LEVEL_UP_TO else {}
    axes.set_xticks(places, classes, fontsize=small, color=INK, **turned)
    axes.set_yticks(places, classes, fontsize=small, color=INK)
    axes.set_ylabel("true class", fontsize=10, color=SOFT)
    if len(classes) <= NUMBERS_UP_TO:
        for row in places:
            for column in places:
                if counts[row, column]:
                    share = shares[row, column]
                    color = "white" if share > 0.3 else INK
                    weight = "bold" if row == column else "normal"
                    text = f"{share * 100:.1f}" if share < 0.9995 else "100"
                    axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color, weight=weight)
    return figure
