"""The kept results as one page: a section for each measurement, with machine, date, command and table."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import goals
from benchmarks.catalogue import CATALOGUE, made_by
from benchmarks.machine import RESULTS, ROOT
from benchmarks.tables import markdown, table_of

HEAD = """# Performance

What was measured, where, and with which command: a table for each file in `benchmarks/results/`. This page is written
by `python -m benchmarks report -o docs/performance.md` from these files alone.

The cases of a table took turns on one machine. Every round measures each case once, in a random order. Rounds in which
other processes took more than a tenth of the CPUs are thrown away, and fewer than five clean rounds are "not measured".
Figures are medians, with quartiles in brackets; ratios are those within a round. "-" marks what is absent.
"""
PICTURES = {
    "time_to_accuracy": ["accuracy-against-seconds.png"],
    "ddp_scaling": ["throughput.png", "throughput-by-batch.png"],
    "start_up": ["start-up.png"],
}
"""Measurement -> its pictures in docs/pictures (`python -m benchmarks pictures`)."""


def read_results() -> dict[str, dict[str, Any]]:
    """The kept results by name, sorted."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def page(results: dict[str, dict[str, Any]] | None = None) -> str:
    """The Markdown text. A measurement without a result says so."""
    results = read_results() if results is None else results
    lines = [HEAD, "## Goals", "", *goals.table(results, lambda name, result: made_by(result) == name), ""]
    for entry in CATALOGUE:
        lines += [f"## {entry.name}", "", f"{entry.question} {entry.table}", ""]
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
