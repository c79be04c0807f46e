"""The same measurement here and in another checkout, in turns: `--against FOLDER` of some measurements.

Each turn runs `python -m benchmarks.NAME OPTIONS` in both folders, in a random order, and reads the JSON that it
prints. For each figure of the table, the table here shows both medians and the median of the ratios within a turn.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.report import plain_text, table_of
from ddp_core.errors import UserError

HERE, THERE = "here", "there"
Cells = dict[tuple[str, str], float]
"""(row, column) -> figure."""


def compare(name: str, words: Sequence[str], folder: Path, turns: int) -> int:
    """Print the comparison; returns 1 if no figure was measured in both folders. Errors: UserError."""
    if not (folder / "benchmarks" / f"{name}.py").is_file():
        raise UserError(f"--against {folder}: there is no benchmarks/{name}.py in it")
    places = {HERE: ROOT, THERE: folder}
    draw, found = random.Random(0), []
    for turn in range(turns):
        results = {place: _measure(name, words, places[place]) for place in draw.sample(sorted(places), 2)}
        states = ", ".join(f"{place} {results[place].get('not_measured', 'measured')}" for place in places)
        print(f"turn {turn + 1} of {turns}: {states}", file=sys.stderr)
        found.append({place: figures(result) for place, result in results.items()})
    rows = ratios(found)
    columns = ["figure", f"here ({turns} turns, median)", "there", "here / there (least to most)"]
    print(plain_text({"columns": columns, "rows": rows}) if rows else "no figure was measured in both folders")
    return 0 if rows else 1


def _measure(name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """The result of the measurement in a folder. Errors: UserError where it prints none."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise UserError(f"--against: {' '.join(command[1:])} printed no result in {folder}") from None


def figures(result: dict[str, Any]) -> Cells:
    """The figures of a result's table: the first number of each cell after the first column."""
    cells: Cells = {}
    if "not_measured" in result or (table := table_of(result)) is None:
        return cells
    for name, *others in table["rows"]:
        for column, cell in zip(table["columns"][1:], others, strict=True):
            if number := re.search(r"[+-]?\d[\d,]*\.?\d*", cell):
                cells[name, column] = float(number[0].replace(",", ""))
    return cells


def ratios(turns: Sequence[dict[str, Cells]]) -> list[list[str]]:
    """A row for each figure that both folders have: its medians, and the ratios within a turn."""
    rows = []
    for key in dict.fromkeys(key for turn in turns for key in turn[HERE]):
        pairs = [(turn[HERE][key], turn[THERE][key]) for turn in turns if all(key in turn[p] for p in (HERE, THERE))]
        if pairs:
            found = sorted(here / there for here, there in pairs if there)
            shown = f"{statistics.median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f})" if found else "-"
            rows.append([", ".join(key), *(f"{statistics.median(side):g}" for side in zip(*pairs, strict=True)), shown])
    return rows
