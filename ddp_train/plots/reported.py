"""Panels for what techniques and the driver reported over the epochs: the `extra` of a history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddp_train.observers.records import HistoryDocument
from ddp_train.plots.style import PALETTE, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Panel", "draw_panel", "panels"]

AT_MOST = 8
"""More panels would make the curves of the run itself hard to find; the history holds all."""
MARKERS_UP_TO = 30


@dataclass(frozen=True)
class Panel:
    """One name of `extra`, how it is titled, and by what its values are divided for the unit."""

    name: str
    title: str
    unit: str
    divisor: float = 1.0
    share: bool = False


KNOWN = {
    "gpu_utilization": Panel("gpu_utilization", "GPU utilisation", "mean over GPUs and epoch", share=True),
    "gpu_memory": Panel("gpu_memory", "GPU memory", "highest in use, GiB", 2.0**30),
    "gradient_norm": Panel("gradient_norm", "Gradient norm", "before clipping, last step of the epoch"),
}


def panels(history: HistoryDocument) -> list[Panel]:
    """What any epoch reported, the GPUs first, then in the order of appearance; only what was finite at least once."""
    seen = [name for epoch in history["epochs"] for name, value in epoch.get("extra", {}).items() if value is not None]
    names = list(dict.fromkeys(seen))
    names.sort(key=lambda name: list(KNOWN).index(name) if name in KNOWN else len(KNOWN))
    plain = {name: Panel(name, name.replace("_", " ").capitalize(), "at the end of the epoch") for name in names}
    return [KNOWN.get(name, plain[name]) for name in names][:AT_MOST]


def draw_panel(axes: Axes, panel: Panel, epochs: Sequence[Mapping[str, Any]]) -> None:
    """One curve over the epochs; a missing value leaves a gap."""
    from matplotlib.ticker import PercentFormatter

    style(axes, panel.title, panel.unit, "epoch")
    raw = [epoch.get("extra", {}).get(panel.name) for epoch in epochs]
    values = [math.nan if value is None else value / panel.divisor for value in raw]
    marker = "o" if len(epochs) <= MARKERS_UP_TO else None
    numbers = [epoch["epoch"] for epoch in epochs]
    axes.plot(numbers, values, color=PALETTE[4], linewidth=2.2, marker=marker, markersize=4.5, clip_on=False, zorder=3)
    if panel.share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        return
    axes.yaxis.set_major_formatter("{x:,.6g}")
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) >= 0:
        axes.set_ylim(0, max(known) * 1.08 or 1.0)
