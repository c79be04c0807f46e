"""Learning-rate schedules as pure functions of the step: factor(step) in [0, 1] times the peak rate.

A schedule keeps no state, so resuming at a step needs the step alone. The schedule that follows the loss of the
held-out split is a technique (techniques/plateau.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddp_core.errors import UserError
from ddp_train.config.options import ScheduleOptions
from ddp_train.config.validation import milestones

Schedule = Callable[[int], float]
"""Step (from 0) -> the factor on the peak learning rate for that step."""

FALL = 0.1
LAST = 0.01
"""Share of the peak rate at which `exponential` ends where --gamma is not set."""
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / (25 * 1e4)  # torch's div_factor and final_div_factor


@dataclass(frozen=True)
class Span:
    """The part of a run after its warm-up, in epochs. `warmup`: epochs of warm-up; `floor`: the lowest factor."""

    epochs: float
    warmup: float
    options: ScheduleOptions
    floor: float


Shape = Callable[[float, Span], float]
"""(epochs since warm-up, span) -> the factor."""


def step(epoch: float, span: Span) -> float:
    """The factor is multiplied by `gamma` every `step_size` epochs."""
    return _gamma(span) ** int(epoch // span.options.step_size)


def multistep(epoch: float, span: Span) -> float:
    """The factor is multiplied by `gamma` at each milestone, counted from the start of the run with its warm-up."""
    places = [at if at >= 1 else at * (span.warmup + span.epochs) for at in milestones(span.options.milestones)]
    # A milestone given as a share of the run may miss its step by a rounding error.
    return _gamma(span) ** sum(epoch + span.warmup >= at - 1e-9 for at in places)


def exponential(epoch: float, span: Span) -> float:
    """`gamma` to the power of the epoch."""
    gamma = span.options.gamma
    return float(LAST ** (epoch / span.epochs) if gamma is None else gamma**epoch)


def cosine(epoch: float, span: Span) -> float:
    """Half a cosine from 1 to the floor (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return span.floor + (1 - span.floor) * _half_cosine(epoch / span.epochs)


def warm_restarts(epoch: float, span: Span) -> float:
    """Half cosines, each `t_mult` times as long as the one before (the same paper, SGDR)."""
    mult, first = span.options.t_mult, span.options.t_0
    length = float(first) if first is not None else span.epochs / (1 + mult + mult**2)  # three cycles in a run
    while epoch >= length - 1e-9:
        epoch, length = epoch - length, length * mult
    return span.floor + (1 - span.floor) * _half_cosine(max(0.0, epoch) / length)


def onecycle(epoch: float, span: Span) -> float:
    """Half cosines up to the peak and down to almost nothing (Smith and Topin 2018, arXiv:1708.07120)."""
    rise = span.options.pct_start * span.epochs
    if epoch < rise:
        return ONECYCLE_START + (1 - ONECYCLE_START) * (1 - _half_cosine(epoch / rise))
    return ONECYCLE_END + (1 - ONECYCLE_END) * _half_cosine((epoch - rise) / (span.epochs - rise))


def linear(epoch: float, span: Span) -> float:
    """A straight line from 1 to the floor."""
    return 1 + (span.floor - 1) * epoch / span.epochs


def triangular(epoch: float, span: Span) -> float:
    """Straight lines up to the peak and down to the floor (Smith 2017, arXiv:1506.01186)."""
    rise = span.options.pct_start * span.epochs
    if epoch < rise:
        return span.floor + (1 - span.floor) * epoch / rise
    return 1 + (span.floor - 1) * (epoch - rise) / (span.epochs - rise)


def constant(epoch: float, span: Span) -> float:
    """Always 1."""
    return 1.0


SHAPES: dict[str, Shape] = {
    "step": step,
    "multistep": multistep,
    "exponential": exponential,
    "cosine": cosine,
    "warm_restarts": warm_restarts,
    "onecycle": onecycle,
    "linear": linear,
    "triangular": triangular,
    "constant": constant,
    "plateau": constant,
}
RISES_ITSELF = ("onecycle", "triangular")


def create_schedule(options: ScheduleOptions, *, epochs: int, steps_per_epoch: int, peak_rate: float = 1.0) -> Schedule:
    """The schedule of a run: linear warm-up over `warmup_epochs` (from `warmup_start` as torch's LinearLR, else with no
    step at rate zero), then the named shape over the rest.

    Warm-up never takes more than half of the run. The shape's progress runs from 0 at the first step after
    warm-up to 1 just after the last step, so that the last step still learns. Errors: UserError for milestones that
    are not numbers, and an `eta_min` above `peak_rate`.
    """
    if options.eta_min > peak_rate:
        raise UserError(f"--eta-min {options.eta_min:g} is above the peak learning rate {peak_rate:g}")
    milestones(options.milestones)
    total = epochs * steps_per_epoch
    rise = 0.0 if options.scheduler in RISES_ITSELF else options.warmup_epochs
    warmup = min(round(rise * steps_per_epoch), total // 2)
    shape = SHAPES[options.scheduler]
    span = Span((total - warmup) / steps_per_epoch, warmup / steps_per_epoch, options, options.eta_min / peak_rate)

    def factor(step: int) -> float:
        """The factor on the peak learning rate for `step`."""
        if step < warmup:
            start = options.warmup_start
            return (step + 1) / (warmup + 1) if start is None else start + (1 - start) * step / warmup
        return shape((step - warmup) / steps_per_epoch, span)

    return factor


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every parameter group to `factor` times its peak rate (`initial_lr`)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _gamma(span: Span) -> float:
    """--gamma, or its default."""
    return FALL if span.options.gamma is None else span.options.gamma


def _half_cosine(progress: float) -> float:
    """1 falling to 0 over a half period."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
