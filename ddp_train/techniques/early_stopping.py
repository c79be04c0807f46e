"""Early stopping (Prechelt 1998, "Early Stopping - But When?"): the run ends when it stops improving.

Effect: no time is spent on epochs that do not raise the validation accuracy. Cost: none. Without a validation split the
test split takes part in the choice of the model: `--val-split` keeps it out. It ends a run with warm restarts early
only if `patience` is longer than a cycle.
"""

from __future__ import annotations

from typing import Any

from ddp_train.observers.records import EpochRecord
from ddp_train.technique import Context, Technique


def create(context: Context) -> Technique:
    """`--early-stopping PATIENCE`, `--min-delta`."""
    options = context.config.regularize
    assert options.early_stopping is not None
    stopping = _EarlyStopping(options.early_stopping, options.min_delta)
    return Technique(name="early_stopping", after_epoch=stopping.after_epoch, state=stopping)


class _EarlyStopping:
    def __init__(self, patience: int, min_delta: float) -> None:
        self._patience, self._min_delta = patience, min_delta
        self.best, self.waited = -1.0, 0

    def after_epoch(self, record: EpochRecord) -> bool:
        """Whether `patience` epochs have passed without an accuracy that is higher by more than `min_delta`."""
        if record.accuracy > self.best + self._min_delta:
            self.best, self.waited = record.accuracy, 0
        else:
            self.waited += 1
        return self.waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
