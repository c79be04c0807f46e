"""Pictures of the kept results: `python -m benchmarks pictures [-o DIR]`.

accuracy-against-seconds.png: test accuracy on CIFAR-10 over the seconds of the epochs, for every preset and peer that
was run, a line for each seed. Only what has a result in benchmarks/results/ is drawn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_train.plots.style import PALETTE, SOFT, legend, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "accuracy_figure", "draw"]

Results = Mapping[str, dict[str, Any]]
_PRESET = re.compile(r"python launch.py --auto --preset (\S+) --data-dir \S+")
"""The command of a run of a preset as it is."""
Curve = list[tuple[float, float]]
"""Seconds since the first epoch began, and test accuracy, behind each epoch."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Write each picture that there are results for; the files. Errors: OSError, UserError where they cannot be."""
    written = []
    for name, figure in PICTURES.items():
        drawn = figure(results)
        if drawn is not None:
            save(drawn, folder / name)
            written.append(folder / name)
    return written


def curves(results: Results) -> dict[str, list[Curve]]:
    """Sort of run -> the curves of its runs on CIFAR-10."""
    found: dict[str, list[Curve]] = {}
    for result in results.values():
        if "runs" in result and "time_to_accuracy" in result.get("command", ""):
            for name, runs in result["runs"].items():
                found.setdefault(name, []).extend(_curve(run["epochs"]) for run in runs if not run["disturbed"])
        elif (
            "best_test_accuracy" in result and "--preset" in result["command"] and "--augment" not in result["command"]
        ):
            name = "--preset " + result["command"].split("--preset ")[1].split()[0]
            found.setdefault(name, []).append(_curve(result["epochs"]))
    return {name: lines for name, lines in found.items() if lines}


def _curve(epochs: list[dict[str, Any]]) -> Curve:
    ends = itertools.accumulate(epoch["seconds"] for epoch in epochs)
    return list(zip(ends, (epoch["test_accuracy"] for epoch in epochs), strict=True))


def accuracy_figure(results: Results) -> Figure | None:
    """Test accuracy against seconds; None without a result."""
    found = curves(results)
    if not found:
        return None
    machines = {r["machine"]["processor"] for r in results.values() if "machine" in r and {"runs", "epochs"} & r.keys()}
    figure = new_figure(9, 5, "CIFAR-10: test accuracy against the time of training and evaluation")
    axes = figure.subplots()
    style(axes, "", "%", f"seconds ({', '.join(sorted(machines))})")
    for (name, lines), colour in zip(sorted(found.items()), itertools.cycle(PALETTE), strict=False):
        for at, line in enumerate(lines):
            seconds, accuracies = zip(*line, strict=True)
            axes.plot(
                seconds,
                [100 * accuracy for accuracy in accuracies],
                color=colour,
                linewidth=1.2,
                marker="o",
                markersize=3,
                label=name if at == 0 else None,
            )
    axes.set_xscale("log")
    ticks = [5, 10, 20, 45, 100, 300, 600, 1200, 2400, 4800]
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.tick_params(axis="x", colors=SOFT)
    legend(axes, loc="lower right")
    return figure


PICTURES: dict[str, Callable[[Results], Figure | None]] = {"accuracy-against-seconds.png": accuracy_figure}
