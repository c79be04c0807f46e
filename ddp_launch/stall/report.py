"""Shows a stall on one screen, and records it as one event."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddp_launch.events.run_events import RunEvents
from ddp_launch.failure.summary import names
from ddp_launch.stall.finding import Finding, RankView
from ddp_launch.stall.waited_for import WaitedFor
from ddp_train.watchdog.python_stacks import traceback_lines

ROWS = 12


class Reporter:
    """Shows and records the findings of a run."""

    def __init__(self, console: Console, events: RunEvents) -> None:
        self._console, self._events = console, events

    def stall(self, found: Finding, views: Sequence[RankView], seconds: float, *, killing: bool) -> None:
        """Report a stall that has lasted for `seconds`."""
        stacks = {str(view.rank): traceback_lines([*view.frames, *view.native]) for view in views if view.frames}
        facts = (found.kind, found.ranks, found.title, found.collective, found.rows, stacks)
        self._events.stall(seconds, *facts, killing=killing)
        show(self._console, f"no progress for {seconds:.0f} s", found)
        ask = f"python -m ddp_launch stacks {os.getpid()}"
        ending = (
            "Nothing was ended (--stall-kill SECONDS does that)" if not killing else "The run is ended (--stall-kill)"
        )
        self._console.print(Text(ending if killing else f"{ending}. Look again: {ask}", style="dim"), soft_wrap=True)

    def waits(self, shares: Mapping[int, float], seconds: float) -> None:
        """Record the share of `seconds` for which each rank has waited for others."""
        self._events.waits(shares, seconds)

    def waited_for(self, found: WaitedFor, shares: Mapping[int, Mapping[str, float]]) -> None:
        """Report the rank that the others waited for, in one line; below it how the trainer's ranks spent their
        time."""
        self._events.waited_for(found.rank, found.ms, found.share, found.steps, shares)
        text = f"{found.ms:.1f} ms a step, {found.share:.0%} of the time ({found.steps} steps seen)"
        self._console.print(Text(f"note: the others waited for rank {found.rank}: {text}"), soft_wrap=True)
        for rank, parts in sorted(shares.items())[:ROWS]:
            each = ", ".join(f"{name} {share:.0%}" for name, share in parts.items())
            self._console.print(Text(f"      rank {rank}: {each}"), soft_wrap=True)


def show(console: Console, head: str, found: Finding) -> None:
    """Print the finding as a table: what holds the ranks up, then what each of them is doing."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True, min_width=9)
    table.add_column(overflow="fold")
    for name, text in _rows(found):
        table.add_row(name, Text(text))
    console.print()
    console.rule(f"[bold yellow]{head}[/bold yellow]", align="left", style="yellow")
    console.print(table)


def _rows(found: Finding) -> Iterable[tuple[str, str]]:
    """The rows of the table, the culprits' first."""
    yield "because", found.title
    # The culprits first: on a large machine the rest is cut off.
    rows = sorted(found.rows, key=lambda row: not set(row[0]) & set(found.ranks))
    for ranks, doing in rows[:ROWS]:
        yield names(ranks), doing
    if rows[ROWS:]:
        yield "", f"and {len(rows) - ROWS} more"
    if found.advice:
        yield "to do", found.advice
