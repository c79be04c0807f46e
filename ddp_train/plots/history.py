"""The curves of a run: `python -m ddp_train.plots history FILE.json -o FILE.png`.

Panels for what techniques and the driver reported over the epochs: the `extra` of a history.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddp_core.errors import UserError
from ddp_train.observers.records import HistoryDocument, read_history
from ddp_train.plots.style import PALETTE, legend, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _TEST, _RATE, _SPEED = PALETTE[:4]
_MARKERS_UP_TO = 30
"""Epochs up to which each is marked by a dot; more would run into one another."""


def plot_history(history: HistoryDocument, path: str | os.PathLike[str]) -> None:
    """Draw loss, accuracy, learning rate and throughput over the epochs as a PNG in the place of `path`.

    Raises UserError when the history has no epochs, or the file cannot be written.
    """
    figure = history_figure(history)
    save(figure, path)


def history_figure(history: HistoryDocument) -> Figure:
    """Four panels of 1500 x 1050 pixels, and a row more for every two things that techniques reported.

    Raises UserError when the history has no epochs.
    """
    if not history["epochs"]:
        raise UserError("the history has no epochs to draw")
    reported = panels(history)
    rows = 2 + -(-len(reported) // 2)
    figure = new_figure(10, 3.5 * rows, _title(history))
    loss, accuracy, rate, speed, *more = figure.subplots(rows, 2).flatten()
    _draw_loss(loss, history)
    _draw_accuracy(accuracy, history)
    _draw_learning_rate(rate, history)
    _draw_throughput(speed, history)
    for axes, panel in zip(more, reported, strict=False):
        draw_panel(axes, panel, history["epochs"])
        _limit_to_epochs(axes, history)
    for axes in more[len(reported) :]:
        axes.set_axis_off()
    return figure


def _draw_loss(axes: Axes, history: HistoryDocument) -> None:
    _style(axes, "Loss", "mean per image", history)
    _line(axes, history, "train_loss", _TRAIN, "train")
    _line(axes, history, "test_loss", _TEST, "test")
    values = [*_column(history, "train_loss"), *_column(history, "test_loss")]
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 50 * min(positive):
        axes.set_yscale("log")  # the end of a long run would else be a flat line
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        _from_zero(axes, values)
    legend(axes)


def _draw_accuracy(axes: Axes, history: HistoryDocument) -> None:
    from matplotlib.ticker import PercentFormatter

    _style(axes, "Accuracy", "share of images", history)
    _line(axes, history, "train_accuracy", _TRAIN, "train")
    _line(axes, history, "test_accuracy", _TEST, "test")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    best = history["best"]
    epoch, value = best["epoch"], best["test_accuracy"]
    if epoch is not None and value is not None:
        label = f"best test {value:.2%} in epoch {epoch}"
        axes.plot([epoch], [value], "*", markersize=15, color=_TEST, markeredgecolor="white", label=label, zorder=5)
    legend(axes)


def _draw_learning_rate(axes: Axes, history: HistoryDocument) -> None:
    _style(axes, "Learning rate", "at the end of the epoch", history)
    _line(axes, history, "learning_rate", _RATE)
    axes.yaxis.set_major_formatter("{x:g}")
    _from_zero(axes, _column(history, "learning_rate"))


def _draw_throughput(axes: Axes, history: HistoryDocument) -> None:
    _style(axes, "Throughput", "training images per second, all ranks", history)
    _line(axes, history, "images_per_second", _SPEED)
    axes.yaxis.set_major_formatter("{x:,.10g}")
    _from_zero(axes, _column(history, "images_per_second"))


def _line(axes: Axes, history: HistoryDocument, name: str, color: str, label: str | None = None) -> None:
    """One curve over the epochs; a missing value leaves a gap. Test has squares, for those who see no colours."""
    epochs, values = _column(history, "epoch"), _column(history, name)
    marker = ("s" if label == "test" else "o") if len(epochs) <= _MARKERS_UP_TO else None
    width = 1.4 if label == "train" else 2.2
    axes.plot(
        epochs,
        values,
        color=color,
        linewidth=width,
        marker=marker,
        markersize=4.5,
        label=label,
        zorder=3,
        clip_on=False,
    )


def _from_zero(axes: Axes, values: Sequence[float]) -> None:
    """Let the axis begin at zero, so that heights compare; left alone where a value is negative or none is known."""
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) >= 0 and max(known) > 0:
        axes.set_ylim(0, max(known) * 1.08)


def _column(history: HistoryDocument, name: str) -> list[float]:
    return [math.nan if (value := epoch[name]) is None else float(value) for epoch in history["epochs"]]


def _style(axes: Axes, title: str, unit: str, history: HistoryDocument) -> None:
    style(axes, title, unit, "epoch")
    _limit_to_epochs(axes, history)


def _limit_to_epochs(axes: Axes, history: HistoryDocument) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    first, last = history["epochs"][0]["epoch"], history["epochs"][-1]["epoch"]
    assert first is not None and last is not None
    axes.set_xlim(first - 0.5, last + max(0.5, (last - first) * 0.02))


def _title(history: HistoryDocument) -> str:
    """What was trained, from the names that the environment has, else a plain title."""
    environment = history["environment"]
    parts = [str(environment[name]) for name in ("model", "dataset") if environment.get(name)]
    ranks = environment.get("world_size")
    if isinstance(ranks, int):
        parts.append("1 rank" if ranks == 1 else f"{ranks} ranks")
    parts.append(f"global batch {history['epochs'][-1]['global_batch']:,}")
    return "  ·  ".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command `history`."""
    parser.add_argument("file", metavar="FILE.json", help="training_history.json of a run")


def run(arguments: argparse.Namespace) -> None:
    """Draw `arguments.file` into `arguments.output`. Errors: UserError."""
    plot_history(read_history(arguments.file), arguments.output)


if TYPE_CHECKING:
    from matplotlib.axes import Axes

AT_MOST = 8
"""More panels would make the curves of the run itself hard to find; the history holds all."""
MARKERS_UP_TO = 30


@dataclass(frozen=True)
class Panel:
    """One name of `extra`, how it is titled, and by what its values are divided for the unit."""

    name: str
    title: str
    unit: str
    divisor: float = 1.0
    share: bool = False


KNOWN = {
    "gpu_utilization": Panel("gpu_utilization", "GPU utilisation", "mean over GPUs and epoch", share=True),
    "gpu_memory": Panel("gpu_memory", "GPU memory", "highest in use, GiB", 2.0**30),
    "gradient_norm": Panel("gradient_norm", "Gradient norm", "before clipping, last step of the epoch"),
}


def panels(history: HistoryDocument) -> list[Panel]:
    """What any epoch reported, the GPUs first, then in the order of appearance; only what was finite at least once."""
    seen = [name for epoch in history["epochs"] for name, value in epoch.get("extra", {}).items() if value is not None]
    names = list(dict.fromkeys(seen))
    names.sort(key=lambda name: list(KNOWN).index(name) if name in KNOWN else len(KNOWN))
    plain = {name: Panel(name, name.replace("_", " ").capitalize(), "at the end of the epoch") for name in names}
    return [KNOWN.get(name, plain[name]) for name in names][:AT_MOST]


def draw_panel(axes: Axes, panel: Panel, epochs: Sequence[Mapping[str, Any]]) -> None:
    """One curve over the epochs; a missing value leaves a gap."""
    from matplotlib.ticker import PercentFormatter

    style(axes, panel.title, panel.unit, "epoch")
    raw = [epoch.get("extra", {}).get(panel.name) for epoch in epochs]
    values = [math.nan if value is None else value / panel.divisor for value in raw]
    marker = "o" if len(epochs) <= MARKERS_UP_TO else None
    numbers = [epoch["epoch"] for epoch in epochs]
    axes.plot(numbers, values, color=PALETTE[4], linewidth=2.2, marker=marker, markersize=4.5, clip_on=False, zorder=3)
    if panel.share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        return
    axes.yaxis.set_major_formatter("{x:,.6g}")
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) >= 0:
        axes.set_ylim(0, max(known) * 1.08 or 1.0)
