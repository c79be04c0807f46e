"""Reduce the learning rate on a plateau: it falls whenever the loss of the held-out split (validation, else test) has
not improved for some epochs.

Source: the rule of torch.optim.lr_scheduler.ReduceLROnPlateau (mode min, threshold 1e-4 relative). Effect: the
rate follows the run instead of a plan. Cost: none. It replaces the other schedulers; warm-up stays. Its state is in the
checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

from ddp_train.observers.records import EpochRecord
from ddp_train.optim.lr_schedule import FALL
from ddp_train.technique import Context, Technique

THRESHOLD = 1e-4


def create(context: Context) -> Technique:
    """Create the technique of `--scheduler plateau`."""
    options = context.config.schedule
    floor = options.eta_min / context.peak_rate
    plateau = _Plateau(options.patience, FALL if options.gamma is None else options.gamma, floor)
    after_epoch = plateau.after_epoch
    return Technique(name="plateau", rate=lambda step: plateau.factor, after_epoch=after_epoch, state=plateau)


class _Plateau:
    def __init__(self, patience: int, factor: float, floor: float) -> None:
        self._patience, self._fall, self._floor = patience, factor, floor
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def after_epoch(self, record: EpochRecord) -> bool:
        """Count the epochs without a lower loss; never ends the run."""
        if record.loss < self.best * (1 - THRESHOLD):
            self.best, self.waited = record.loss, 0
        else:
            self.waited += 1
        if self.waited > self._patience:
            self.factor, self.waited = max(self.factor * self._fall, self._floor), 0
        return False

    def state_dict(self) -> dict[str, Any]:
        """Factor, best loss (None before there is one) and epochs waited."""
        return {"factor": self.factor, "best": self.best if self.best < math.inf else None, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.factor, self.waited = state["factor"], state["waited"]
        self.best = math.inf if state["best"] is None else state["best"]
