"""What a person sees of a run, on stderr: a live display on a terminal, one plain line per epoch elsewhere.

Both show the same table, one row per finished epoch. On a terminal there is a live area under it: a
bar for the epoch, one for the run, and one for each GPU's utilisation and memory.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from ddp_train.observers.epoch_table import (
    EpochTable,
    OwnTable,
    clock,
    describe,
    energy,
    number,
    percent,
    step_line,
    summary,
)
from ddp_train.observers.records import Best, EpochRecord, Observer, RunFacts, StepReport

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

    from gpu_topology.monitor import Reading

_REFRESHES_PER_SECOND = 2  # rendering takes the interpreter lock from the training thread
_GPU_INTERVAL_S = 1.0
_SILENCE_S = 29.0  # a little less than the trainer's, whose reports come after it
_WIDTH = 80
_GIB = 2**30


def create_progress(stream: TextIO | None = None, *, each: bool = False) -> Observer:
    """The live display when `stream` (stderr by default) is a terminal that can move its cursor, else plain lines.

    `each`: a plain line for each report, not only after half a minute without a line.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        return PlainProgress(stream, each=each)
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    return PlainProgress(stream, each=each) if console.is_dumb_terminal else LiveProgress(console)


class _Progress(Observer):
    """What both displays know of the run."""

    def __init__(self) -> None:
        self._facts: RunFacts | None = None
        self._table = EpochTable()
        self._started = time.monotonic()
        self._joules = 0.0

    def on_start(self, facts: RunFacts) -> None:
        """Start the clock and the table."""
        self._facts, self._started = facts, time.monotonic()
        own = facts.own_columns
        self._table = OwnTable(facts.epochs) if own else EpochTable(facts.epochs, facts.best, facts.split)

    def _summary(self, best: Best) -> str | None:
        """The last line of a run; None before the run has begun."""
        if self._facts is None:
            return None
        used = energy(self._joules) if math.isfinite(self._joules) and self._joules > 0 else ""
        if used and self._facts.seconds_before:
            used += f" since epoch {self._facts.start_epoch}"
        seconds = self._facts.seconds_before + time.monotonic() - self._started
        return summary(best, seconds, self._facts.out_dir, used)


class PlainProgress(_Progress):
    """A heading, then one aligned line per epoch, each flushed at once: for log files and pipes.

    Within an epoch there is a line for `each` report, or for one that comes half a minute after the last line.
    """

    def __init__(self, stream: TextIO, *, each: bool = False) -> None:
        super().__init__()
        self._stream, self._interval = stream, 0.0 if each else _SILENCE_S
        self._printed_at = time.monotonic()

    def on_start(self, facts: RunFacts) -> None:
        """Print what is trained on what, and the table's heading."""
        super().on_start(facts)
        for line in (*facts.notes, *describe(facts), self._table.heading()):
            if line:
                self._print(line)

    def on_step(self, report: StepReport) -> None:
        """Print a line if one is due, but none for the epoch's last step: the epoch's own line follows."""
        is_last = report.step == report.steps
        if not is_last and time.monotonic() - self._printed_at >= self._interval:
            self._print(step_line(report, self._facts.epochs if self._facts is not None else 0))

    def on_epoch(self, record: EpochRecord) -> None:
        """Print the epoch's line."""
        self._joules += record.energy_joules
        self._print(self._table.row(record)[0])

    def on_end(self, best: Best) -> None:
        """Print the best epoch and the time that the run took."""
        if line := self._summary(best):
            self._print(line)

    def _print(self, line: str) -> None:
        """Print a line at once."""
        print(line, file=self._stream, flush=True)
        self._printed_at = time.monotonic()


class LiveProgress(_Progress):
    """Finished epochs as a growing table above a live area, which a thread redraws twice a second."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._report: StepReport | None = None
        self._live: Live | None = None
        self._gpus: list[Reading] = []
        self._gpus_read_at = -math.inf

    def on_start(self, facts: RunFacts) -> None:
        """Print the facts and the table's heading, and start the live area."""
        from rich.live import Live
        from rich.panel import Panel
        from rich.text import Text

        super().on_start(facts)
        for note in facts.notes:
            self._console.print(note, style="yellow", markup=False, emoji=False)
        text = Text("\n").join(Text(line) for line in describe(facts))
        width = min(_WIDTH, self._console.width)
        self._console.print(Panel(text, title=Text(facts.name), title_align="left", border_style="cyan", width=width))
        if heading := self._table.heading():
            self._print_row(heading, "bold")
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else rich would send prints for a file to the terminal
        )
        self._live.start()
        self._console.show_cursor(True)  # rich hides it, and a killed process could not bring it back

    def on_step(self, report: StepReport) -> None:
        """Keep the newest numbers for the next redraw."""
        self._report = report

    def on_epoch(self, record: EpochRecord) -> None:
        """Print the epoch's line above the live area."""
        self._joules += record.energy_joules
        if self._report is not None and self._facts is not None and record.epoch < self._facts.epochs:
            self._report = replace(self._report, epoch=record.epoch + 1, step=0)
        line, is_best = self._table.row(record)
        self._print_row(line, "green" if is_best else "")

    def on_end(self, best: Best) -> None:
        """Take the live area away and print the best epoch."""
        self.close()
        if line := self._summary(best):
            self._console.print(line, style="bold green", markup=False, emoji=False)

    def close(self) -> None:
        """Take the live area away, after a failure too."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    leave = close

    def render(self) -> RenderableType:
        """The live area now: label, bar, count and numbers in four columns."""
        from rich.table import Table

        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.width = min(_WIDTH, self._console.width)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right", min_width=9)
        grid.add_column(no_wrap=True, min_width=29)
        if self._facts is None:
            return grid
        self._add_run(grid, self._facts)
        # GPU readings are at most a second old; there are none on the CPU or without a driver.
        if self._facts.gpu_uuids and time.monotonic() - self._gpus_read_at >= _GPU_INTERVAL_S:
            from gpu_topology.monitor import read_gpus

            self._gpus, self._gpus_read_at = read_gpus(self._facts.gpu_uuids), time.monotonic()
        for index, reading in enumerate(self._gpus):
            grid.add_row(*gpu_row(index, reading))
        return grid

    def _add_run(self, grid: Table, facts: RunFacts) -> None:
        """Add the row on the run: epoch, bar, time left."""
        report = self._report
        if report is None:
            grid.add_row(f"epoch {facts.start_epoch}/{facts.epochs}", _bar(0, 1), "", "starting")
            return
        epochs_done = report.epoch - 1 + (report.step / report.steps if report.steps else 0.0)
        epochs_before = facts.start_epoch - 1 + (facts.start_step / report.steps if report.steps else 0.0)
        left = math.nan
        if epochs_done > epochs_before:
            left = (time.monotonic() - self._started) / (epochs_done - epochs_before) * (facts.epochs - epochs_done)
        count = f"{report.step}/{report.steps}" if report.steps else f"step {report.step}"
        if report.step == report.steps:
            count = "testing"
        rate = f"{number(report.images_per_second, ',.0f')} images/s  lr {number(report.learning_rate, '.3g')}"
        grid.add_row(
            f"epoch {report.epoch}/{facts.epochs}",
            _bar(report.step, report.steps),
            count,
            f"loss {number(report.loss, '.4f')}  accuracy {percent(report.accuracy)}",
        )
        grid.add_row("run", _bar(epochs_done, facts.epochs), f"{clock(left)} left", rate)

    def _print_row(self, line: str, style: str) -> None:
        """Print a line above the live display."""
        self._console.print(line, style=style, markup=False, emoji=False, no_wrap=True, crop=True, overflow="ellipsis")


def _bar(done: float, total: float) -> RenderableType:
    """rich's progress bar."""
    from rich.progress_bar import ProgressBar

    return ProgressBar(total=max(1, total), completed=done, complete_style="cyan", finished_style="green")


def gpu_row(index: int, reading: Reading) -> tuple[str, RenderableType, str, str]:
    """A GPU's label, its utilisation as a bar and as a number, and what else the driver reports."""
    busy = reading.utilization
    parts = []
    if reading.memory_used is not None and reading.memory_total is not None:
        parts.append(f"{reading.memory_used / _GIB:.1f}/{reading.memory_total / _GIB:.1f} GiB")
    if reading.power_watts is not None:
        parts.append(f"{reading.power_watts:.0f} W")
    if reading.temperature_c is not None:
        parts.append(f"{reading.temperature_c} °C")
    return f"GPU {index}", _bar(busy or 0, 100), "-" if busy is None else f"{busy}%", "  ".join(parts)
