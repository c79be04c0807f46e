"""The picture of a batch finder's trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddp_train.plots.style import PALETTE, legend, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["batch_size_figure"]


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
