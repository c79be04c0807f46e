"""Pictures of the kept results: `python -m benchmarks pictures [-o DIR]`.

accuracy-against-seconds.png: test accuracy on CIFAR-10 over the seconds of the epochs, for every preset and peer that
was run, a line for each seed. throughput.png: images per second by network and ranks, and throughput-by-batch.png the
same against the global batch, both from ddp_scaling. start-up.png: the seconds from the command to the first training
step, from start_up. Only what has a result in benchmarks/results/ is drawn.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import made_by
from ddp_train.plots.style import INK, PALETTE, SOFT, legend, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, dict[str, Any]]
Curve = list[tuple[float, float]]
"""Seconds since the first epoch began, and test accuracy, after each epoch."""
TICKS = [5, 10, 20, 45, 100, 300, 600, 1200, 2400, 4800]
"""Ticks of the time axis in seconds."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Write each picture that has results; returns the files. Errors: OSError, UserError where that fails."""
    figures = {
        "accuracy-against-seconds.png": accuracy_figure(results),
        "throughput.png": throughput_figure(results),
        "throughput-by-batch.png": batch_figure(results),
        "start-up.png": start_up_figure(results),
    }
    drawn = {folder / name: figure for name, figure in figures.items() if figure is not None}
    for path, figure in drawn.items():
        save(figure, path)
    return list(drawn)


def curves(results: Results) -> dict[str, list[Curve]]:
    """Kind of run -> the curves of its runs on CIFAR-10."""
    found: dict[str, list[Curve]] = {}
    for result in results.values():
        command, maker = result.get("command", ""), made_by(result)
        if maker == "time_to_accuracy":
            for name, runs in result["runs"].items():
                found.setdefault(name, []).extend(_curve(run["epochs"]) for run in runs if not run["disturbed"])
        elif maker == "training_run" and "--preset" in command and "--augment" not in command:
            words = command.split()
            options = [words[at : at + 2] for at, word in enumerate(words) if word in ("--preset", "--epochs")]
            name = " ".join(itertools.chain(*options))
            found.setdefault(name, []).append(_curve(result["epochs"]))
    return {name: lines for name, lines in found.items() if lines}


def _curve(epochs: list[dict[str, Any]]) -> Curve:
    """A run's test accuracy over the seconds of its epochs."""
    ends = itertools.accumulate(epoch["seconds"] for epoch in epochs)
    return list(zip(ends, (epoch["test_accuracy"] for epoch in epochs), strict=True))


def accuracy_figure(results: Results) -> Figure | None:
    """Test accuracy against seconds; None without a result."""
    found = curves(results)
    if not found:
        return None
    machines = {r["machine"]["processor"] for r in results.values() if "machine" in r and {"runs", "epochs"} & r.keys()}
    figure = new_figure(11, 5, "CIFAR-10: test accuracy against the time of training and evaluation")
    axes = figure.subplots()
    style(axes, "", "%", f"seconds ({', '.join(sorted(machines))})")
    # A colour that comes again is dashed.
    for (name, lines), (dashes, colour) in zip(sorted(found.items()), product(("-", "--"), PALETTE), strict=False):
        for at, line in enumerate(lines):
            seconds, accuracies = zip(*line, strict=True)
            percent = [100 * accuracy for accuracy in accuracies]
            label = name if at == 0 else None
            axes.plot(seconds, percent, dashes, color=colour, linewidth=1.2, marker="o", markersize=3, label=label)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if low <= tick <= high], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.tick_params(axis="x", colors=SOFT)
    legend(axes, beside=True)
    return figure


def throughput_figure(results: Results) -> Figure | None:
    """Images per second on CPUs by network, ranks and threads; None without a result."""
    models = {f"--model {name}": rates for name, (_, rates) in _scaling(results).items() if ":" not in name}
    return _bars("Images per second of training by ranks and threads", 0.9 + 1.3 * len(models), models, ",.0f")


def batch_figure(results: Results) -> Figure | None:
    """Images per second against the global batch by ranks and threads, for networks with several that were measured
    on one kind of processor; else None."""
    machines: dict[str, dict[str, dict[str, Any]]] = {}
    for key, result in results.items():
        machines.setdefault(result.get("machine", {}).get("processor", ""), {})[key] = result
    sizes: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for processor, measured in machines.items():
        for name, (batch, rates) in _scaling(measured).items():
            sizes.setdefault((name.partition(":")[0], processor), {})[batch] = rates
    sizes = {which: dict(sorted(found.items())) for which, found in sizes.items() if len(found) > 2}
    if not sizes:
        return None
    figure = new_figure(9, 0.9 + 3.4 * len(sizes), "Images per second of training by global batch")
    for axes, ((name, processor), found) in zip(_rows(figure, len(sizes)), sizes.items(), strict=True):
        for case, colour in zip(next(iter(found.values())), itertools.cycle(PALETTE), strict=False):
            values = [rates[case] for rates in found.values()]
            axes.plot(list(found), values, color=colour, linewidth=1.4, marker="o", markersize=4, label=case)
        axes.set_xscale("log", base=2)
        style(axes, f"--model {name}", "", f"images per step, all ranks ({processor})")
        axes.set_xticks(list(found), minor=False)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_ylim(bottom=0)
        legend(axes, loc="lower right")
    return figure


def _scaling(results: Results) -> dict[str, tuple[int, dict[str, float]]]:
    """Network as ddp_scaling names it -> global batch, and images per second by case."""
    models = [result["models"].items() for result in results.values() if made_by(result) == "ddp_scaling"]
    found = itertools.chain.from_iterable(models)
    return {name: (one["global_batch"], _medians(one["rounds"])) for name, one in found if one["rounds"]}


def start_up_figure(results: Results) -> Figure | None:
    """Seconds to the first training step for each way of starting; None without a result."""
    found = [one["rounds"] for one in results.values() if made_by(one) == "start_up" and one.get("rounds")]
    panels = {"": _medians(found[-1])} if found else {}
    return _bars("From the command to the first training step", 2.6, panels, ".1f", "seconds")


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each case over the rounds."""
    return {case: statistics.median(one[case] for one in rounds) for case in rounds[0]}


def _bars(title: str, height: float, panels: dict[str, dict[str, float]], form: str, unit: str = "") -> Figure | None:
    """Panels one below the other, with a bar for each value, the first on top; each bar shows its value at its end."""
    if not panels:
        return None
    figure = new_figure(9, height, title)
    for axes, (name, values) in zip(_rows(figure, len(panels)), panels.items(), strict=True):
        cases = list(values)[::-1]
        bars = axes.barh(cases, [values[case] for case in cases], color=PALETTE[0], height=0.62)
        axes.bar_label(bars, labels=[format(values[case], form) for case in cases], padding=4, fontsize=9, color=INK)
        axes.margins(x=0.12)
        style(axes, name, "", unit)
        axes.grid(visible=False, axis="y")
    return figure


def _rows(figure: Figure, count: int) -> list[Axes]:
    """The axes of `count` panels, one below the other."""
    return list(figure.subplots(count, 1, squeeze=False)[:, 0])
