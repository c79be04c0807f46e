"""Pictures: `python -m ddp_train.plots COMMAND ... -o FILE.png`. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from ddp_train.plots.history import history_figure, plot_history

__all__ = ["history_figure", "plot_history"]
