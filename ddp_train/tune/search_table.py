"""The trials of a search as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddp_train.tune.search import Trial

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["search_table"]


def search_table(ranking: Sequence[Trial]) -> Table:
    """One row per trial, the best first: score, epochs, values."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    for column in ("trial", "test accuracy", "epochs"):
        table.add_column(column, justify="right", no_wrap=True)
    names = list(ranking[0].values)
    for name in names:
        table.add_column(name.replace("_", "-"), justify="right", overflow="fold")
    for place, trial in enumerate(ranking):
        score = "failed" if trial.best is None else f"{trial.best:.2%}"
        cells = [str(trial.number + 1), score, str(max(trial.scores, default=0))]
        values = (trial.values[name] for name in names)
        cells += [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        table.add_row(*map(Text, cells), style="bold green" if place == 0 else None)
    return table
