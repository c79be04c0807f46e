"""One picture of all learning-rate schedules: `python -m ddp_train.plots schedules -o FILE.png`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, get_args, get_type_hints

from ddp_core.errors import UserError
from ddp_train.config.options import ScheduleOptions
from ddp_train.optim.lr_schedule import FALL, create_schedule
from ddp_train.plots.style import PALETTE, grid_of_panels, percent_axis, save, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
STEPS = 100
"""Steps of an epoch in the picture."""


def schedules_figure(epochs: int, warmup_epochs: float) -> Figure:
    """Every scheduler with its defaults over `epochs`, as a share of the peak rate.

    `plateau` depends on the loss of a run: it is drawn for a loss that falls over the first third and then stays flat.
    """
    # `auto` chooses one of the others.
    names = [name for name in get_args(get_type_hints(ScheduleOptions)["scheduler"]) if name != "auto"]
    rows = -(-len(names) // COLUMNS)
    title = f"Learning-rate schedules  ·  {epochs} epochs, {warmup_epochs:g} of warm-up"
    figure, panels = grid_of_panels(12, 2.6 * rows + 0.6, title, rows, COLUMNS, len(names))
    for panel, name, color in zip(panels, names, PALETTE * len(names), strict=False):
        options = ScheduleOptions(scheduler=name, warmup_epochs=warmup_epochs)
        factor = create_schedule(options, epochs=epochs, steps_per_epoch=STEPS, peak_rate=1.0)
        style(panel, name, "share of the peak", "epoch")
        steps, rates = range(epochs * STEPS), [factor(step) for step in range(epochs * STEPS)]
        if name == "plateau":
            flat = epochs // 3
            style(panel, name, f"loss flat from epoch {flat}", "epoch")
            falls = [max(0, step // STEPS - flat) // (options.patience + 1) for step in steps]
            rates = [rate * FALL**fall for rate, fall in zip(rates, falls, strict=True)]
        panel.plot([step / STEPS for step in steps], rates, color=color, linewidth=2.2)
        panel.set_ylim(0, 1.05)
        panel.set_xlim(0, epochs)
        percent_axis(panel)
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `schedules`."""
    parser.add_argument("--epochs", type=int, default=100, help="length of the run [100]")
    parser.add_argument("--warmup-epochs", type=float, default=5.0, help="epochs of warm-up [5]")


def run(arguments: argparse.Namespace) -> None:
    """Draw into `arguments.output`. Errors: UserError."""
    if not 1 <= arguments.epochs <= 10_000:
        raise UserError(f"--epochs takes a whole number from 1 to 10000, not {arguments.epochs}")
    if not 0 <= arguments.warmup_epochs <= arguments.epochs:
        raise UserError(f"--warmup-epochs takes a number from 0 to --epochs, not {arguments.warmup_epochs}")
    save(schedules_figure(arguments.epochs, arguments.warmup_epochs), arguments.output)
