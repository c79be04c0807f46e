"""A comparison as text: tables that fit the terminal, and plain text where the output is not a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ddp_core.errors import printable
from ddp_train.compare.comparison import RULE, Comparison, Sample
from ddp_train.compare.grouping import Group, seed, state
from ddp_train.compare.outcomes import Outcome, launch_seconds, training_seconds
from ddp_train.observers.epoch_table import duration, percent
from ddp_train.report.read_run import RunRecord

STYLES = {"differs": "bold", "within": "dim", "unknown": "yellow", "equal": "dim"}
MOST_COLUMNS = 4
"""Most groups that are shown as columns; more groups are shown as rows."""
PIPED = 160
"""Width in characters where the output is not a terminal."""


def show(comparison: Comparison) -> None:
    """Print a comparison on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED, no_color=True)
    for title, table in (
        ("Runs", _runs(comparison)),
        ("What differs", _differences(comparison)),
        ("What came out: mean ± standard deviation", _outcomes(comparison)),
        (f"Against {comparison.groups[0].name}", _against(comparison)),
    ):
        if table is not None:
            console.print(Text(title, style="bold"))
            console.print(table)
            console.print()
    for note in comparison.notes:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)
    if comparison.against:
        console.print(Text(RULE, style="dim"))


def spread(outcome: Outcome, sample: Sample) -> str:
    """A mean with its deviation and number, in words: `93.31% ± 0.20% (3)`; `-` without a value."""
    if sample.mean is None:
        return "-"
    if sample.deviation is None:
        return outcome.words(sample.mean)
    return f"{outcome.words(sample.mean)} ± {outcome.words(sample.deviation)} ({len(sample.values)})"


def run_row(group: Group, run: RunRecord) -> tuple[str, ...]:
    """The cells for one run: group, seed, best accuracy so far, time, state, folder."""
    drawn = seed(run)
    best = "-" if run.best is None else f"{percent(run.best[1])} {run.split}, epoch {run.best[0]}"
    seconds = launch_seconds(run) if not run.trained else training_seconds(run)
    time = "-" if seconds is None else duration(seconds)
    return group.name, "-" if drawn is None else str(drawn), best, time, state(run), str(run.folder)


def seeds(group: Group) -> str:
    """The seeds of a group, in words."""
    known = [drawn for run in group.runs if (drawn := seed(run)) is not None]
    return ", ".join(map(str, dict.fromkeys(known))) or "-"


def _table(*heads: str, first: str = "left") -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for at, head in enumerate(heads):
        table.add_column(escape(printable(head)), overflow="fold", no_wrap=at == 0 and first == "name")
    return table


def _row(table: Table, *cells: str, style: str | None = None) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def _runs(comparison: Comparison) -> Table:
    table = _table("group", "seed", "best", "time", "state", "folder", first="name")
    for group in comparison.groups:
        for run in group.runs:
            _row(table, *run_row(group, run), style=None if run in group.counted else "yellow")
    return table


def _differences(comparison: Comparison) -> Table | None:
    if not comparison.differences:
        return None
    names = [group.name for group in comparison.groups]
    if len(names) <= MOST_COLUMNS:
        table = _table("", *names)
        for one in comparison.differences:
            _row(table, one.name, *(one.values[name] for name in names))
        return table
    table = _table("group", "differs in")
    for name in names:
        _row(table, name, ", ".join(f"{one.name} {one.values[name]}" for one in comparison.differences))
    return table


def _outcomes(comparison: Comparison) -> Table | None:
    if not comparison.outcomes:
        return None
    names = [group.name for group in comparison.groups]
    rows: Sequence[Outcome] = comparison.outcomes
    if len(names) <= MOST_COLUMNS:
        table = _table("", *names)
        for one in rows:
            _row(table, one.name, *(spread(one, comparison.samples[one.key][name]) for name in names))
        return table
    table = _table("group", *(one.name for one in rows))
    for name in names:
        _row(table, name, *(spread(one, comparison.samples[one.key][name]) for one in rows))
    return table


def _against(comparison: Comparison) -> Table | None:
    if not comparison.against:
        return None
    table = _table("group", "", "difference", "95% interval", "", first="name")
    for one in comparison.against:
        cells = (one.group, one.outcome.name, one.difference, one.interval, one.words)
        _row(table, *cells, style=STYLES[one.verdict])
    return table
