"""The kept results as one page: a section for each measurement, with machine, date, command and table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.catalogue import CATALOGUE, Benchmark, find
from benchmarks.goals import table
from benchmarks.machine import ROOT

RESULTS = ROOT / "benchmarks" / "results"

HEAD = """# Performance

What was measured, where, and with which command: a table for each file in `benchmarks/results/`. This page is written
by `python -m benchmarks report -o docs/performance.md` out of these files, and out of nothing else.

Ratios come from taking turns on one machine: every round measures each case once in a random order, rounds in which
other processes took more than a tenth of the CPUs are thrown away, and fewer than five clean rounds are "not measured".
Figures are medians; quartiles stand in brackets.
"""
NONE = "not yet measured"
PICTURES = {
    "time_to_accuracy": ["accuracy-against-seconds.png"],
    "ddp_scaling": ["throughput.png", "throughput-by-batch.png"],
    "start_up": ["start-up.png"],
}
"""Measurement -> its pictures in docs/pictures (`python -m benchmarks pictures`)."""


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The results in `folder` by name, sorted."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(results: dict[str, dict[str, Any]] | None = None) -> str:
    """The Markdown text. A measurement without a result says so."""
    results = read_results() if results is None else results
    goals = ["## What they are held to", "", *table(results, _by_name), ""]
    return "\n".join([HEAD, *goals, *(_section(entry, results) for entry in CATALOGUE)])


def _by_name(benchmark: str, result: dict[str, Any]) -> bool:
    entry = find(benchmark)
    return entry is not None and _made_by(entry, result)


def _section(entry: Benchmark, results: dict[str, dict[str, Any]]) -> str:
    mine = {name: result for name, result in results.items() if _made_by(entry, result)}
    lines = [f"## {entry.name}", "", entry.question[0].upper() + entry.question[1:] + ".", ""]
    for name in PICTURES.get(entry.name, []):
        if (ROOT / "docs" / "pictures" / name).is_file():
            lines += [f"![{entry.question}](pictures/{name})", ""]
    if not mine:
        lines += [f"`python -m benchmarks run {entry.name}`: {NONE}.", ""]
    for name, result in mine.items():
        lines += [*_facts(name, result), "", *_table(result), ""]
    return "\n".join(lines)


def _made_by(entry: Benchmark, result: dict[str, Any]) -> bool:
    command = result.get("command", "")
    if command.startswith(f"python -m {entry.module}"):
        return True
    return entry.name == "training_run" and command.startswith("python launch.py")


def _facts(name: str, result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items() if version)
    return [
        f"`{result['command']}`",
        f"({machine['date']}; {machine['processor']}, {machine['usable_cpus']} CPUs, {gpus}; {versions}; "
        f"[{name}.json](../benchmarks/results/{name}.json))",
    ]


def _table(result: dict[str, Any]) -> list[str]:
    if reason := result.get("not_measured"):
        return [f"Not measured: {reason}."]
    table = result.get("table") or _own_table(result)
    if table is None:
        return ["The figures are in the file."]
    columns, rows = table["columns"], table["rows"]
    shown = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return shown + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]


def _own_table(result: dict[str, Any]) -> dict[str, Any] | None:
    """The table of a result that brings none: a training run's, or a plain mapping of names to figures."""
    if "best_test_accuracy" in result:
        figures = (result["wall_seconds"], result["epoch_seconds"], len(result["epochs"]))
        accuracies = (f"{result[key]:.2%}" for key in ("last_test_accuracy", "best_test_accuracy"))
        columns = ["wall s", "s in epochs", "epochs", "last test accuracy", "best test accuracy"]
        return {"columns": columns, "rows": [[*figures, *accuracies]]}
    for key in ("launchers", "monitors", "cases"):
        if isinstance(found := result.get(key), dict) and found:
            return _mapping(found)
    if isinstance(rows := result.get("results"), list) and rows:
        columns = [name for name, value in rows[0].items() if not isinstance(value, (list, dict))]
        return {"columns": columns, "rows": [[row.get(name, "") for name in columns] for row in rows]}
    return None


def _mapping(found: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(found.values()))
    if not isinstance(first, dict):
        return {"columns": ["case", "figure"], "rows": list(found.items())}
    columns = [name for name, value in first.items() if not isinstance(value, (list, dict))]
    return {
        "columns": ["case", *(name.replace("_", " ") for name in columns)],
        "rows": [[case, *(figures.get(name, "") for name in columns)] for case, figures in found.items()],
    }
