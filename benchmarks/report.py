"""The kept results as one page: for each its machine, date, command, and a table with units and rounded figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import goals
from benchmarks.catalogue import CATALOGUE, made_by
from benchmarks.machine import RESULTS, ROOT

Table = dict[str, Any]
"""`columns`: titles; `rows`: lists of cells."""
Row = Mapping[str, Any]
Form = str | Callable[[Row], str]
ABSENT = "-"
HEAD = """# Performance

What was measured, where, and with which command: a table for each file in `benchmarks/results/`. This page is written
by `python -m benchmarks report -o docs/performance.md` from these files alone.

The cases of a table took turns on one machine. Every round measures each case once, in a random order. Rounds in which
other processes took more than a tenth of the CPUs are thrown away, and fewer than five clean rounds are "not measured".
Figures are medians, with quartiles in brackets; ratios are those within a round. "-" marks what is absent.
`python -m benchmarks check` measures short forms again and compares their ratios with those kept here; its status is
1 if one fell behind.
"""
PICTURES = {
    "time_to_accuracy": ["accuracy-against-seconds.png"],
    "ddp_scaling": ["throughput.png", "throughput-by-batch.png"],
    "start_up": ["start-up.png"],
}
"""Measurement -> its pictures in docs/pictures (`python -m benchmarks pictures`)."""


def _size(row: Row) -> str:
    """The bytes of a row in the largest unit that gives a whole number."""
    count, units = int(row["bytes"]), ["B", "KiB", "MiB", "GiB"]
    while count % 1024 == 0 and len(units) > 1:
        count, units = count // 1024, units[1:]
    return f"{count} {units[0]}"


def _over_torchrun(row: Row) -> str:
    """The seconds over torchrun with their quartiles."""
    low, high = row["over_torchrun_quartiles_s"]
    return f"{row['over_torchrun_s']:+.2f} ({low:+.2f} to {high:+.2f})"


# fmt: off
TABLES: dict[str, tuple[str, list[tuple[str, str, Form]]]] = {
    "augmentation": ("cases", [
        ("augmentation", "case", ""), ("images/s here", "ours", ",d"),
        ("images/s with torchvision", "torchvision", ",d"), ("times torchvision", "ratio", ".1f"),
    ]),
    "launch_overhead": ("launchers", [
        ("launcher", "case", ""), ("s to the first line, median", "median_s", ".2f"),
        ("s over torchrun, median (quartiles)", "over_torchrun_s", _over_torchrun),
    ]),
    "monitor_overhead": ("monitors", [
        ("monitor", "case", ""), ("version", "version", ""), ("CPU s to start", "start_cpu_seconds", ".2f"),
        ("s measured", "measured_seconds", ".0f"), ("% of one core", "percent_of_one_core", ".2f"),
    ]),
    "mixed_ranks": ("results", [
        ("the slower rank takes", "slower", lambda row: f"{row['slower']} times as long"),
        ("images/s, equal shares", "equal", ".1f"), ("images/s, measured shares", "measured", ".1f"),
        ("measured / equal", "ratio", ".2f"), ("bound", "bound", ".2f"),
        ("training loss, equal shares", "train_loss_equal", ".4f"),
        ("training loss, measured shares", "train_loss", ".4f"),
    ]),
    "collectives": ("results", [
        ("collective", "collective", ""), ("size", "bytes", _size), ("µs a call, median", "microseconds", ",.0f"),
        ("algorithm bandwidth, GB/s", "algbw_gb_s", ".2g"), ("bus bandwidth, GB/s", "busbw_gb_s", ".2g"),
    ]),
    "topology_report": ("results", [
        ("µs a driver call takes", "delay_us", "d"), ("command", "command", lambda row: f"`{row['command']}`"),
        ("wall s, median", "wall_s", ".3f"), ("wall s, slowest", "slowest_s", ".3f"), ("CPU s", "cpu_s", ".3f"),
        ("s in the driver", "driver_s", ".3f"), ("driver calls", "driver_calls", "d"), ("bound, s", "bound_s", ".3f"),
        ("within the bound", "within", lambda row: "yes" if row["within"] else "no"),
        ("disturbed runs left out", "disturbed_runs", "d"),
    ]),
    "training_run": ("", [
        ("wall s", "wall_seconds", ".1f"), ("s in epochs", "epoch_seconds", ".1f"),
        ("epochs", "epochs", lambda row: str(len(row["epochs"]))),
        ("test accuracy, last epoch", "last_test_accuracy", ".2%"),
        ("test accuracy, best epoch", "best_test_accuracy", ".2%"),
    ]),
}
"""Measurement -> the key of its rows in a result (the whole result is the one row without a key), and their columns.

A column: its title, the key of its figure, and how that is shown: a format or a function of the whole row.
"""
# fmt: on
TITLES = {"us, median (quartiles)": "µs, median (quartiles)", "of each step": "in each step"}
"""Titles in older results, and how they are shown."""


def table_of(result: Row) -> Table | None:
    """The table of a result: made from its figures where `TABLES` has the measurement, else the result's own table."""
    if (declared := TABLES.get(made_by(result) or "")) is not None:
        key, columns = declared
        found = result.get(key, []) if key else [result]
        rows = [{"case": case, **row} for case, row in found.items()] if isinstance(found, dict) else found
        cells = [[_cell(row, key, form) for _, key, form in columns] for row in rows]
        return {"columns": [title for title, _, _ in columns], "rows": cells}
    if (table := result.get("table")) is None:
        return None
    rows = [[ABSENT if cell in (None, "") else str(cell) for cell in row] for row in table["rows"]]
    return {"columns": [TITLES.get(title, title) for title in table["columns"]], "rows": rows}


def _cell(row: Row, key: str, form: Form) -> str:
    """A figure as a cell, or a mark where it is absent."""
    if (value := row.get(key)) is None:
        return ABSENT
    return form(row) if callable(form) else format(value, form)


def markdown(table: Table) -> list[str]:
    """The table as lines of Markdown."""
    head = [f"| {' | '.join(table['columns'])} |", f"|{'---|' * len(table['columns'])}"]
    return head + [f"| {' | '.join(row)} |" for row in table["rows"]]


def plain_text(table: Table) -> str:
    """The table as aligned lines for a terminal."""
    lines = [table["columns"], *table["rows"]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in row).rstrip() for row in rows)


def read_results() -> dict[str, dict[str, Any]]:
    """The kept results by name, sorted."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def page(results: dict[str, dict[str, Any]] | None = None) -> str:
    """The Markdown text of the page. A measurement without a result has a line that says so."""
    results = read_results() if results is None else results
    lines = [HEAD, "## Goals", "", *goals.table(results, lambda name, result: made_by(result) == name), ""]
    for entry in CATALOGUE:
        lines += [f"## {entry.name}", "", f"{entry.question} {entry.paragraphs[-1]}", ""]
        for picture in PICTURES.get(entry.name, []):
            if (ROOT / "docs" / "pictures" / picture).is_file():
                lines += [f"![{entry.question}](pictures/{picture})", ""]
        mine = {name: result for name, result in results.items() if made_by(result) == entry.name}
        if not mine:
            lines += [f"`python -m benchmarks run {entry.name}`: not yet measured.", ""]
        for name, result in mine.items():
            lines += [*_section(name, result), ""]
    return "\n".join(lines)


def _section(name: str, result: dict[str, Any]) -> list[str]:
    """The lines of one result: its command, machine and table."""
    machine = result["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items() if version)
    lines = [
        f"`{result['command']}`",
        f"({machine['date']}; {machine['processor']}, {machine['usable_cpus']} CPUs, {gpus}; {versions}; "
        f"[{name}.json](../benchmarks/results/{name}.json))",
        "",
    ]
    if reason := result.get("not_measured"):
        return [*lines, f"Not measured: {reason}."]
    table = table_of(result)
    return [*lines, *(markdown(table) if table else ["The figures are in the file."])]
