"""The table of a result: column titles with units, rounded figures, "-" for what is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.catalogue import made_by

Table = dict[str, Any]
"""`columns`: titles; `rows`: lists of cells."""
Row = Mapping[str, Any]
ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """A title, the key of its figure, and how that is shown: a format or a function of the whole row."""

    title: str
    key: str
    form: str | Callable[[Row], str] = ""

    def cell(self, row: Row) -> str:
        """The figure of a row as text."""
        value = row.get(self.key)
        if value is None:
            return ABSENT
        return self.form(row) if callable(self.form) else format(value, self.form)


def _size(row: Row) -> str:
    count, units = int(row["bytes"]), ["B", "KiB", "MiB", "GiB"]
    while count % 1024 == 0 and len(units) > 1:
        count, units = count // 1024, units[1:]
    return f"{count} {units[0]}"


def _over_torchrun(row: Row) -> str:
    low, high = row["over_torchrun_quartiles_s"]
    return f"{row['over_torchrun_s']:+.2f} ({low:+.2f} to {high:+.2f})"


# fmt: off
TABLES: dict[str, tuple[str, list[Column]]] = {
    "augmentation": ("cases", [
        Column("augmentation", "case"),
        Column("images/s here", "ours", ",d"),
        Column("images/s with torchvision", "torchvision", ",d"),
        Column("times torchvision", "ratio", ".1f"),
    ]),
    "launch_overhead": ("launchers", [
        Column("launcher", "case"),
        Column("s to the first line, median", "median_s", ".2f"),
        Column("s over torchrun, median (quartiles)", "over_torchrun_s", _over_torchrun),
    ]),
    "monitor_overhead": ("monitors", [
        Column("monitor", "case"),
        Column("version", "version"),
        Column("CPU s to start", "start_cpu_seconds", ".2f"),
        Column("s measured", "measured_seconds", ".0f"),
        Column("% of one core", "percent_of_one_core", ".2f"),
    ]),
    "mixed_ranks": ("results", [
        Column("the slower rank takes", "slower", lambda row: f"{row['slower']} times as long"),
        Column("images/s, equal shares", "equal", ".1f"),
        Column("images/s, measured shares", "measured", ".1f"),
        Column("measured / equal", "ratio", ".2f"),
        Column("bound", "bound", ".2f"),
        Column("training loss, equal shares", "train_loss_equal", ".4f"),
        Column("training loss, measured shares", "train_loss", ".4f"),
    ]),
    "collectives": ("results", [
        Column("collective", "collective"),
        Column("size", "bytes", _size),
        Column("µs a call, median", "microseconds", ",.0f"),
        Column("algorithm bandwidth, GB/s", "algbw_gb_s", ".2g"),
        Column("bus bandwidth, GB/s", "busbw_gb_s", ".2g"),
    ]),
    "topology_report": ("results", [
        Column("µs a driver call takes", "delay_us", "d"),
        Column("command", "command", lambda row: f"`{row['command']}`"),
        Column("wall s, median", "wall_s", ".3f"),
        Column("wall s, slowest", "slowest_s", ".3f"),
        Column("CPU s", "cpu_s", ".3f"),
        Column("s in the driver", "driver_s", ".3f"),
        Column("driver calls", "driver_calls", "d"),
        Column("bound, s", "bound_s", ".3f"),
        Column("within the bound", "within", lambda row: "yes" if row["within"] else "no"),
        Column("disturbed runs left out", "disturbed_runs", "d"),
    ]),
    "training_run": ("", [
        Column("wall s", "wall_seconds", ".1f"),
        Column("s in epochs", "epoch_seconds", ".1f"),
        Column("epochs", "epochs", lambda row: str(len(row["epochs"]))),
        Column("test accuracy, last epoch", "last_test_accuracy", ".2%"),
        Column("test accuracy, best epoch", "best_test_accuracy", ".2%"),
    ]),
}
"""Measurement -> the key of its rows in a result (the whole result is the one row without a key), and their columns."""
# fmt: on
TITLES = {"us, median (quartiles)": "µs, median (quartiles)", "of each step": "in each step"}
"""Titles in older results, and how they are shown."""


def table_of(result: Row) -> Table | None:
    """The table of a result: of its figures where `TABLES` has the measurement, else the one that it brings."""
    if (declared := TABLES.get(made_by(result) or "")) is not None:
        key, columns = declared
        found = result.get(key, []) if key else [result]
        rows = [{"case": case, **row} for case, row in found.items()] if isinstance(found, dict) else found
        cells = [[column.cell(row) for column in columns] for row in rows]
        return {"columns": [column.title for column in columns], "rows": cells}
    if (table := result.get("table")) is None:
        return None
    rows = [[ABSENT if cell in (None, "") else str(cell) for cell in row] for row in table["rows"]]
    return {"columns": [TITLES.get(title, title) for title in table["columns"]], "rows": rows}


def markdown(table: Table) -> list[str]:
    """As the lines of a Markdown table."""
    head = [f"| {' | '.join(table['columns'])} |", f"|{'---|' * len(table['columns'])}"]
    return head + [f"| {' | '.join(row)} |" for row in table["rows"]]


def text(table: Table) -> str:
    """As aligned lines for a terminal."""
    lines: Sequence[Sequence[str]] = [table["columns"], *table["rows"]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in row).rstrip() for row in rows)
