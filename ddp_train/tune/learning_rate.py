"""The learning-rate range test (Smith 2017, arXiv:1506.01186): `--tune lr`.

The rate rises by the same factor at every step, from almost nothing until the loss diverges. A tenth of the rate at
which the smoothed loss is lowest is a safe peak rate for a run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ddp_core.errors import UserError
from ddp_train.engine.trainer import Trainer

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 120
SMOOTHING = 0.9
RAN_AWAY = 4.0
"""The test ends when the smoothed loss is so many times the lowest one, as in fastai's finder."""
LEAST_STEPS = 20


@dataclass(frozen=True)
class Found:
    """What was measured: the rate, loss and smoothed loss of each step; `steepest` and `suggestion` are rates.

    ran_away: whether the loss had diverged by the highest rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float
    suggestion: float
    ran_away: bool


def range_test(trainer: Trainer, steps: int = STEPS) -> Found:
    """Raise the rate from 1e-6 to 10 in `steps` steps. The trainer's network is of no use afterwards.

    All ranks take part and find the same. Errors: UserError where the loss is not finite from the start.
    """
    components = trainer.components
    peak = components.optimizer.param_groups[0]["initial_lr"]
    ratio = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    # Without the guard, which would end the test where a loss is not finite.
    tested = Trainer(replace(components, schedule=lambda step: LOWEST * ratio**step / peak, nan_guard=None))
    rates: list[float] = []
    losses: list[float] = []
    epochs = (components.pipeline.train(epoch) for epoch in itertools.count())
    for window in itertools.islice(itertools.chain.from_iterable(epochs), steps):
        rates.append(LOWEST * ratio**tested.progress.step)
        losses.append(tested.measure_step(window))
        smoothed = smooth(losses)
        if not math.isfinite(smoothed[-1]) or smoothed[-1] > RAN_AWAY * min(smoothed):
            break
    return suggest(rates, losses)


def smooth(losses: Iterable[float]) -> list[float]:
    """The exponential moving average, corrected for its start (as in Adam)."""
    average, found = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**count))
    return found


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Found:
    """A tenth of the rate at the lowest smoothed loss; `steepest`: where it falls fastest over the log of the rate."""
    finite = next((at for at, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < LEAST_STEPS:
        became = f"was {losses[finite]}" if finite < len(losses) else "diverged"
        raise UserError(f"--tune lr: the loss {became} after {finite} steps")
    lost = finite < len(losses)
    rates, losses = rates[:finite], losses[:finite]
    smoothed = smooth(losses)
    ran_away = lost or smoothed[-1] > RAN_AWAY * min(smoothed)
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    slopes = [after - before for before, after in itertools.pairwise(smoothed[: lowest + 1])]
    steepest = min(range(len(slopes)), key=slopes.__getitem__) if slopes else 0
    return Found(tuple(rates), tuple(losses), tuple(smoothed), rates[steepest], rates[lowest] / 10, ran_away)
