"""Gradient flow: `python -m ddp_train.plots gradient_flow FILE.json -o FILE.png`.

Upper panel: each layer's gradient at the latest measured step, and the range of its mean over the run. Lower panel:
the mean of every layer over the steps, as a map: if it darkens to the left, the gradient vanishes towards the input.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, cast

from ddp_core.errors import UserError
from ddp_train.observers.records import read_document
from ddp_train.plots.style import PALETTE, SOFT, legend, name_ticks, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED_UP_TO = 40
"""Up to this many layers, each is named at the axis; with more, every n-th is."""
NAMED_LEVEL_UP_TO = 8
STEPS_NAMED = 12

SCHEMA = "ddp-train-gradient-flow/1"


class FlowPoint(TypedDict):
    """One step (from 1, over the run) of an epoch (from 1): mean and largest |gradient| of each layer, None where they
    are not finite."""

    epoch: int
    step: int
    mean: list[float | None]
    largest: list[float | None]


class FlowDocument(TypedDict):
    """The layers in the order of the network, and the points in the order of time."""

    schema: str
    layers: list[str]
    points: list[FlowPoint]


def read_flow(path: str | os.PathLike[str]) -> FlowDocument:
    """The document in `path`. Errors: UserError, one line naming the file, when it is missing or not of this form."""
    document = read_document(path, SCHEMA, "gradient flow")
    layers, points = document.get("layers"), document.get("points")
    if not isinstance(layers, list) or not isinstance(points, list) or not all(isinstance(at, str) for at in layers):
        raise UserError(f"{path} is not a gradient flow: layers or points is missing")
    for number, point in enumerate(points):
        if not _is_point(point, len(layers)):
            raise UserError(f"{path} is not a gradient flow: points[{number}] needs a mean and a largest per layer")
    return cast(FlowDocument, document)


def _is_point(point: object, layers: int) -> bool:
    """Whether this is a valid point of the file."""
    if not isinstance(point, dict) or not all(isinstance(point.get(name), int) for name in ("epoch", "step")):
        return False
    for column in (point.get("mean"), point.get("largest")):
        if not isinstance(column, list) or len(column) != layers:
            return False
        if not all(value is None or isinstance(value, (int, float)) for value in column):
            return False
    return True


def flow_figure(document: FlowDocument) -> Figure:
    """Two panels of all layers, from the input on the left. UserError where nothing was measured."""
    if not document["points"] or not document["layers"]:
        raise UserError("the gradient flow has no points to draw")
    last, layers = document["points"][-1], len(document["layers"])
    shown = f"{layers} layers, {len(document['points'])} steps measured"
    figure = new_figure(min(24, max(10, 4 + 0.34 * layers)), 9, f"Gradient flow  ·  {shown}")
    bars, over_time = figure.subplots(2, 1, height_ratios=(1, 1.15))
    _draw_latest(bars, document, f"step {last['step']:,}, epoch {last['epoch']}")
    _draw_map(figure, over_time, document)
    return figure


def _draw_latest(axes: Axes, document: FlowDocument, when: str) -> None:
    """Draw the latest gradients by layer."""
    style(axes, f"|gradient| per layer at {when}", "input on the left, output on the right")
    last, positions = document["points"][-1], range(len(document["layers"]))
    over_run = [[p["mean"][at] for p in document["points"]] for at in positions]
    low, high = ([pick(_positive(values), default=math.nan) for values in over_run] for pick in (min, max))
    axes.set_yscale("log")
    axes.vlines(positions, low, high, color=PALETTE[0], alpha=0.25, linewidth=7, label="mean, range over the run")
    axes.plot(positions, _drawn(last["largest"]), "^", color=PALETTE[1], markersize=6, label="largest")
    axes.plot(positions, _drawn(last["mean"]), "o", color=PALETTE[0], markersize=6, label="mean", zorder=4)
    axes.set_xlim(-0.6, len(positions) - 0.4)
    axes.set_xticks([])
    # Room above the bars for the legend: any of them may reach the top.
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.15)
    legend(axes, loc="upper right", ncols=3)


def _draw_map(figure: Figure, axes: Axes, document: FlowDocument) -> None:
    """Draw the gradients over the run as a map."""
    from matplotlib.colors import LogNorm

    style(axes, "Mean |gradient| over the run", "optimizer steps downwards; grey: zero or not finite")
    axes.grid(False)
    rows = [_drawn(point["mean"]) for point in document["points"]]
    known = _positive([value for row in rows for value in row])
    axes.set_facecolor("#BBBBBB")
    low, high = (min(known), max(known)) if known else (0.1, 1.0)
    norm = LogNorm(low, max(high, low * 1.01))
    picture = axes.imshow(rows, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    bar = figure.colorbar(picture, ax=axes, pad=0.01, fraction=0.03)
    bar.ax.tick_params(which="both", colors=SOFT, labelsize=9, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    every = -(-len(document["layers"]) // NAMED_UP_TO)
    positions = range(0, len(document["layers"]), every)
    names = [document["layers"][at] for at in positions]
    name_ticks(axes, positions, names, size=9, turn=60 if len(document["layers"]) > NAMED_LEVEL_UP_TO else 0)
    steps = [point["step"] for point in document["points"]]
    marks = range(0, len(steps), -(-len(steps) // STEPS_NAMED))
    axes.set_yticks(marks, [f"{steps[at]:,}" for at in marks])
    axes.set_ylabel("step", color=SOFT)


def _positive(values: Sequence[float | None]) -> list[float]:
    """The finite values above 0."""
    return [value for value in values if value is not None and value > 0 and math.isfinite(value)]


def _drawn(values: Sequence[float | None]) -> list[float]:
    """The values, with NaN (not drawn) for those that a logarithmic axis cannot show."""
    return [value if value is not None and value > 0 else math.nan for value in values]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `gradient_flow`."""
    parser.add_argument("file", metavar="FILE.json", help="gradient_flow.json of a run with --gradient-flow")


def run(arguments: argparse.Namespace) -> None:
    """Draw `arguments.file` into `arguments.output`. Errors: UserError."""
    save(flow_figure(read_flow(arguments.file)), arguments.output)
