"""The output of `monitor`: a live table on a terminal, one line per sample elsewhere, and the summary.

The live table is built from plain lines, in a fraction of the time that a rich table takes: it is redrawn with every
sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_topology.monitor.sampler import GpuSample, Sample
from gpu_topology.monitor.usage import LOW, GpuUsage, Usage
from gpu_topology.topology import short_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

GIB = 2**30
_NAME_LEAST, _NAME_MOST = 10, 34
_WIDE = 110


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the live table; `wide` ones need a wide terminal."""

    title: str
    width: int
    value: Callable[[GpuSample], str]
    wide: bool = False


def _columns(sample: Sample, width: int) -> list[_Column]:
    """The columns that are reported and fit into the width."""
    columns = [
        _Column("util", 5, lambda gpu: _known(gpu.utilization, "{}%")),
        _Column("", 10, lambda gpu: _bar(gpu.utilization).ljust(10), wide=True),
        _Column("GiB used", 13, lambda gpu: f"{gib(gpu.memory_used)} / {gib(gpu.memory_total)}"),
        _Column("power", 6, lambda gpu: _known(gpu.power_watts, "{:.0f} W")),
        _Column("temp", 5, lambda gpu: _known(gpu.temperature_c, "{} C")),
        _Column("PCIe out/in", 11, lambda gpu: _rates(gpu.pcie_sent, gpu.pcie_received)),
        _Column("NVLink out/in", 13, lambda gpu: _rates(gpu.nvlink_sent, gpu.nvlink_received)),
        _Column("held back", 14, lambda gpu: ",".join(("?",) if gpu.throttle is None else gpu.throttle), wide=True),
    ]
    reported = {
        "PCIe out/in": any(gpu.pcie_sent is not None for gpu in sample.gpus),
        "NVLink out/in": any(gpu.nvlink_sent is not None for gpu in sample.gpus),
    }
    return [column for column in columns if reported.get(column.title, True) and (width >= _WIDE or not column.wide)]


def sample_text(sample: Sample, width: int, height: int) -> Text:
    """The live table, at most `height` lines: a line per GPU, then the processes on them."""
    from rich.text import Text

    columns = _columns(sample, width)
    room = width - 5 - sum(column.width + 1 for column in columns)
    longest = max((len(short_name(gpu.name)) for gpu in sample.gpus), default=0)
    names = max(min(room, longest, _NAME_MOST), min(_NAME_LEAST, room), 0)
    text = Text(no_wrap=True, overflow="crop")
    heading = " ".join(column.title.rjust(column.width) for column in columns)
    text.append(f"GPU  {'':{names}}{heading}\n", "bold")
    for gpu in sample.gpus:
        text.append(f"{gpu.index:>3}  ", "bold")
        if gpu.error is not None:
            text.append(gpu.error[: max(0, width - 5)] + "\n", "red")
            continue
        text.append(f"{short_name(gpu.name)[:names]:{names}}")
        for column in columns:
            text.append(" " + column.value(gpu).rjust(column.width), _style(column, gpu))
        text.append("\n")
    room = max(0, height - len(sample.gpus) - 3)
    processes = list(_process_lines(sample))
    if len(processes) > room:
        processes = [*processes[: max(0, room - 1)], "  ..."][:room]
    text.append("\n".join(processes), "dim")
    return text


def sample_line(sample: Sample) -> str:
    """One line for a log."""
    return f"{sample.time:%H:%M:%S}  " + "  ".join(map(_gpu_words, sample.gpus))


@contextmanager
def showing(console: Console) -> Iterator[Callable[[Sample], None]]:
    """A function that shows a sample on this console: in place on a terminal, as one more line elsewhere."""
    if not console.is_terminal:
        # Not console.print: it would end the program with status 1 when the reader of a pipe closes it early.
        yield lambda sample: print(sample_line(sample), file=console.file, flush=True)
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda sample: live.update(sample_text(sample, console.width, console.height), refresh=True)


def usage_table(usage: Usage) -> Table:
    """The summary: mean and peak of each GPU. A value that no GPU reported has no column."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0), header_style="bold")
    table.add_column("GPU", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", min_width=_NAME_LEAST)
    rows = [_usage_row(gpu) for gpu in usage.gpus]
    reported = [title for title in rows[0] if any(row[title].strip("? /") for row in rows)] if rows else []
    for title in reported:
        table.add_column(title, justify="right", no_wrap=True)
    for gpu, row in zip(usage.gpus, rows, strict=True):
        values = (row[title] for title in reported)
        style = "red" if gpu.lost_after is not None else None
        table.add_row(str(gpu.index), short_name(gpu.name), *values, style=style)
    return table


def _usage_row(gpu: GpuUsage) -> dict[str, str]:
    """Column title -> cell."""
    low = "?" if gpu.below_50_share is None else f"{gpu.seconds_below_50:.0f} s {gpu.below_50_share:4.0%}"
    return {
        "util": _known(gpu.utilization_mean, "{:.0f}%"),
        "peak": _known(gpu.utilization_peak, "{}%"),
        f"below\n{LOW}%": low,
        "GiB": gib(gpu.memory_mean),
        "peak ": gib(gpu.memory_peak),
        "power": _known(gpu.power_mean, "{:.0f} W"),
        "temp": _known(gpu.temperature_peak, "{} C"),
        "PCIe B/s\nout/in": _rates(gpu.pcie_sent_mean, gpu.pcie_received_mean),
        "NVLink B/s\nout/in": _rates(gpu.nvlink_sent_mean, gpu.nvlink_received_mean),
    }


def _style(column: _Column, gpu: GpuSample) -> str:
    """The colour of a cell."""
    if column.title in ("util", "") and gpu.utilization is not None:
        return "green" if gpu.utilization >= LOW else "yellow"
    return "yellow" if column.title == "held back" else ""


def _gpu_words(gpu: GpuSample) -> str:
    """One GPU in a line of text."""
    if gpu.error is not None:
        return f"GPU {gpu.index} {gpu.error.partition(':')[0]}"
    parts = [_known(gpu.utilization, "{}%"), f"{gib(gpu.memory_used)} GiB"]
    parts += [_known(gpu.power_watts, "{:.0f} W")] if gpu.power_watts is not None else []
    parts += [_known(gpu.temperature_c, "{} C")] if gpu.temperature_c is not None else []
    return f"GPU {gpu.index} {' '.join(parts)}"


def _process_lines(sample: Sample) -> Iterator[str]:
    """A line for each process on a GPU."""
    for gpu in sample.gpus:
        for process in gpu.processes or ():
            name = process.name or "(in another container)"
            yield f"     GPU {gpu.index}  process {process.pid} {name}: {gib(process.used_memory)} GiB"


def _known(value: object, pattern: str) -> str:
    """The value by the pattern, or "?"."""
    return "?" if value is None else pattern.format(value)


def _bar(percent: int | None) -> str:
    """A bar of up to ten blocks."""
    return "" if percent is None else "█" * round(percent / 10)


def _rates(sent: float | None, received: float | None) -> str:
    """ "1.2G/340M": bytes per second, sent and received."""
    return f"{_rate(sent)}/{_rate(received)}"


def _rate(value: float | None) -> str:
    """Bytes per second with a unit letter, or "?"."""
    if value is None:
        return "?"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}" if value < 10 * size else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def gib(size: float | None) -> str:
    """Bytes as GiB with one digit, "?" where unknown."""
    return "?" if size is None else f"{size / GIB:.1f}"
