"""Learning-rate schedules as pure functions of the step: factor(step) in [0, 1] times the peak rate.

A schedule keeps no state, so resuming at a step needs the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ddp_train.options import ScheduleOptions

__all__ = ["Schedule", "create_schedule", "set_learning_rate"]

Schedule = Callable[[int], float]
"""Step (from 0) -> the factor on the peak learning rate for that step."""

MULTISTEP_AT = (0.6, 0.8)
MULTISTEP_FACTOR = 0.1


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def multistep(progress: float) -> float:
    """A tenth at 60% and a hundredth at 80% of the run."""
    return MULTISTEP_FACTOR ** sum(progress >= at for at in MULTISTEP_AT)


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


SHAPES: dict[str, Callable[[float], float]] = {"cosine": cosine, "multistep": multistep, "constant": constant}


def create_schedule(options: ScheduleOptions, *, epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule of a run: linear warm-up over `warmup_epochs`, then the named shape over the rest.

    Warm-up never takes more than half of the run. The shape's progress runs from 0 at the first step after
    warm-up to 1 just after the last step, so that the last step still learns.
    """
    total = epochs * steps_per_epoch
    warmup = min(round(options.warmup_epochs * steps_per_epoch), total // 2)
    shape = SHAPES[options.scheduler]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return shape((step - warmup) / max(1, total - warmup))

    return factor


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every parameter group to `factor` times its peak rate (`initial_lr`)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
