"""The style of all pictures: one palette, light axes, no frames.

Figures are made without pyplot: no global state, no display, no effect on a user's own matplotlib, which is imported
when something is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ddp_core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panels: TypeAlias = tuple[Figure, list[Axes]]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
"""Okabe and Ito's: distinct with every common colour blindness."""
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
    """The labelled curves; `loc` is matplotlib's name of a place."""
    shown = axes.legend(loc=loc, ncols=ncols, fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")  # type: ignore[call-overload]
    for text in shown.get_texts():
        text.set_color(INK)


def percent_axis(axes: Axes) -> None:
    """Fractions of 1 on the y axis, shown in percent."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def name_ticks(axes: Axes, positions: Sequence[int], names: Sequence[str], *, size: float, turn: float) -> None:
    """Names along the x axis, turned by `turn` degrees (0: level)."""
    turned: dict[str, Any] = {"rotation": turn, "ha": "right", "rotation_mode": "anchor"} if turn else {}
    axes.set_xticks(positions, names, fontsize=size, color=INK, **turned)


def grid_of_panels(width: float, height: float, title: str, rows: int, columns: int, count: int) -> Panels:
    """A figure and `count` panels in rows and columns; the places after the last one stay empty."""
    figure = new_figure(width, height, title)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """The figure as a PNG, replacing `path`. UserError when it cannot be written."""
    with replacing(path) as file:
        figure.savefig(file, format="png")
