"""How pictures look here: one palette, quiet axes, no frames.

Figures are made without pyplot: no global state, no display, safe beside a user's own matplotlib, which is imported
when something is drawn.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ddp_core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
"""Okabe and Ito's: told apart with every common colour blindness."""
INK, SOFT, GRID = "#222222", "#6B6B6B", "#E3E3E3"
DPI = 150


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches (150 pixels each) under a bold title."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    return figure


def style(axes: Axes, title: str, unit: str = "", x_label: str = "") -> None:
    """A bold title on the left, the unit of the y axis in small print on the right, a light grid."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_title(unit, loc="right", fontsize=9, color=SOFT)
    axes.set_xlabel(x_label, fontsize=10, color=SOFT)
    axes.tick_params(which="both", colors=SOFT, labelsize=9, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)


def legend(axes: Axes, *, loc: str = "best", ncols: int = 1) -> None:
    """The labelled curves, where there is room, or at a place of matplotlib's name."""
    shown = axes.legend(loc=loc, ncols=ncols, fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")  # type: ignore[call-overload]
    for text in shown.get_texts():
        text.set_color(INK)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """The figure as a PNG in the place of `path`. UserError when it cannot be written."""
    with replacing(path) as file:
        figure.savefig(file, format="png")
