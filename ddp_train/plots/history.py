"""The curves of a run over its epochs: `python -m ddp_train.plots history FILE.json -o FILE.png`.

Loss, accuracy, learning rate and throughput, then what techniques and the driver reported (`extra` in the history).
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddp_core.errors import UserError
from ddp_train.observers.records import Best, HistoryDocument, read_history
from ddp_train.plots.style import PALETTE, legend, new_figure, percent_axis, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _TEST, _RATE, _SPEED, _EXTRA = PALETTE[:5]
_MARKERS_UP_TO = 30
"""Up to this many epochs, each is marked by a dot; with more, the dots would overlap."""
_MOST_EXTRA = 8
"""Most extra panels: more would hide the curves of the run itself. The history holds all numbers."""


@dataclass(frozen=True)
class Panel:
    """One number over the epochs: its name in the history, its title, and the divisor that gives its unit."""

    name: str
    title: str
    unit: str
    divisor: float = 1.0
    is_fraction: bool = False
    color: str = _EXTRA


_RATE_AND_SPEED = (
    Panel("learning_rate", "Learning rate", "at the end of the epoch", color=_RATE),
    Panel("images_per_second", "Throughput", "training images per second, all ranks", color=_SPEED),
)
_KNOWN_EXTRA = {
    "gpu_utilization": Panel("gpu_utilization", "GPU utilisation", "mean over GPUs and epoch", is_fraction=True),
    "gpu_memory": Panel("gpu_memory", "GPU memory", "highest in use, GiB", 2.0**30),
    "energy_joules": Panel("energy_joules", "Energy", "Wh of each epoch, all GPUs", 3600.0),
    "gradient_norm": Panel("gradient_norm", "Gradient norm", "before clipping, last step of the epoch"),
}


def plot_history(history: HistoryDocument, path: str | os.PathLike[str]) -> None:
    """Draw the figure as a PNG, replacing `path`.

    Raises UserError when the history has no epochs, or the file cannot be written.
    """
    save(history_figure(history), path)


def history_figure(history: HistoryDocument) -> Figure:
    """Four panels of 1500 x 1050 pixels, and one more row for every two numbers that techniques reported.

    Raises UserError when the history has no epochs.
    """
    epochs = history["epochs"]
    if not epochs:
        raise UserError("the history has no epochs to draw")
    extra = _extra_panels(epochs)
    rows = 2 + -(-len(extra) // 2)
    figure = new_figure(10, 3.5 * rows, _title(history))
    loss, accuracy, *others = figure.subplots(rows, 2).flatten()
    _draw_loss(loss, epochs)
    _draw_accuracy(accuracy, history)
    for axes, panel in zip(others, _RATE_AND_SPEED, strict=False):
        _draw_panel(axes, panel, epochs, epochs)
    for axes, panel in zip(others[2:], extra, strict=False):
        _draw_panel(axes, panel, epochs, [epoch.get("extra", {}) for epoch in epochs])
    for axes in others[2 + len(extra) :]:
        axes.set_axis_off()
    return figure


def _draw_loss(axes: Axes, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss of both splits."""
    _style(axes, "Loss", "mean per image", epochs)
    train, held_out = _draw_both(axes, epochs, "loss")
    positive = [value for value in (*train, *held_out) if value > 0]
    if positive and max(positive) > 50 * min(positive):
        axes.set_yscale("log")  # otherwise the end of a long run would be a flat line
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        _start_at_zero(axes, [*train, *held_out])
    legend(axes)


def _draw_accuracy(axes: Axes, history: HistoryDocument) -> None:
    """Draw the accuracy of both splits and the best epoch."""
    epochs, best = history["epochs"], Best.of(history)
    _style(axes, "Accuracy", "share of images", epochs)
    _draw_both(axes, epochs, "accuracy")
    percent_axis(axes)
    if best.epoch is not None and best.accuracy is not None:
        label = f"best {best.split} {best.accuracy:.2%} in epoch {best.epoch}"
        look: dict[str, Any] = {"markersize": 15, "color": _TEST, "markeredgecolor": "white", "zorder": 5}
        axes.plot([best.epoch], [best.accuracy], "*", label=label, **look)
    legend(axes)


def _draw_both(axes: Axes, epochs: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Draw the curves of training and of the split that epochs were evaluated on, or that a user's own loop has logged
    (`val_loss`); returns the values of both."""
    split = "val" if f"val_{name}" in epochs[-1] else "test"
    train, held_out = _values(epochs, f"train_{name}"), _values(epochs, f"{split}_{name}")
    _draw_curve(axes, epochs, train, _TRAIN, "train")
    _draw_curve(axes, epochs, held_out, _TEST, split)
    return train, held_out


def _draw_panel(
    axes: Axes, panel: Panel, epochs: Sequence[Mapping[str, Any]], reported: Sequence[Mapping[str, Any]]
) -> None:
    """Draw one number over the epochs. `reported`: for each epoch the mapping that holds the number."""
    _style(axes, panel.title, panel.unit, epochs)
    values = [value / panel.divisor for value in _values(reported, panel.name)]
    _draw_curve(axes, epochs, values, panel.color)
    if panel.is_fraction:
        axes.set_ylim(0, 1)
        percent_axis(axes)
    else:
        axes.yaxis.set_major_formatter("{x:,.10g}")
        _start_at_zero(axes, values)


def _extra_panels(epochs: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Panels of the reported numbers: known ones first, then by first appearance; only those that were ever finite."""
    extras = [epoch.get("extra", {}) for epoch in epochs]
    seen = dict.fromkeys(name for extra in extras for name, value in extra.items() if value is not None)
    found = []
    for name in [name for name in _KNOWN_EXTRA | seen if name in seen][:_MOST_EXTRA]:
        other = Panel(name, name.replace("_", " ").capitalize(), "at the end of the epoch")
        found.append(_KNOWN_EXTRA.get(name, other))
    return found


def _draw_curve(
    axes: Axes, epochs: Sequence[Mapping[str, Any]], values: Sequence[float], color: str, label: str | None = None
) -> None:
    """Draw a curve; missing values leave gaps. The held-out split has squares, for readers who cannot tell colors."""
    marker = ("s" if label in ("test", "val") else "o") if len(epochs) <= _MARKERS_UP_TO else None
    width = 1.4 if label == "train" else 2.2
    look: dict[str, Any] = {"linewidth": width, "marker": marker, "markersize": 4.5, "zorder": 3, "clip_on": False}
    axes.plot(_values(epochs, "epoch"), values, color=color, label=label, **look)


def _start_at_zero(axes: Axes, values: Sequence[float]) -> None:
    """Let the axis start at zero, so that heights compare; unchanged where a value is negative or none is known."""
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) >= 0:
        axes.set_ylim(0, max(known) * 1.08 or 1.0)


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A column as floats, NaN where it is missing."""
    return [math.nan if (value := row.get(name)) is None else float(value) for row in rows]


def _style(axes: Axes, title: str, unit: str, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Set the title of the axes and label the epochs on the x axis."""
    from matplotlib.ticker import MaxNLocator

    style(axes, title, unit, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    first, last = epochs[0]["epoch"], epochs[-1]["epoch"]
    axes.set_xlim(first - 0.5, last + max(0.5, (last - first) * 0.02))


def _title(history: HistoryDocument) -> str:
    """The title: model, dataset and ranks as far as the environment names them, and the global batch."""
    environment = history["environment"]
    parts = [str(environment[name]) for name in ("model", "dataset") if environment.get(name)]
    ranks = environment.get("world_size")
    if isinstance(ranks, int):
        parts.append("1 rank" if ranks == 1 else f"{ranks} ranks")
    parts.append(f"global batch {history['epochs'][-1]['global_batch']:,}")
    return "  ·  ".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `history`."""
    parser.add_argument("file", metavar="FILE.json", help="training_history.json of a run")


def run(arguments: argparse.Namespace) -> None:
    """Draw `arguments.file` into `arguments.output`. Errors: UserError."""
    plot_history(read_history(arguments.file), arguments.output)
