"""Early stopping (Prechelt 1998, "Early Stopping - But When?"): the run ends when it stops improving.

Effect: no time is spent on epochs that do not raise the validation accuracy. Cost: none. Without a validation split the
test split takes part in the choice of the model: `--val-split` keeps it out. With warm restarts `patience` must
be longer than a cycle, since the accuracy falls after each restart.
"""

from __future__ import annotations

from typing import Any

from ddp_train.observers.records import EpochRecord
from ddp_train.technique import Context, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--early-stopping PATIENCE`, `--min-delta`."""
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
        """The best accuracy and the epochs waited since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best accuracy and the epochs waited since; a run that had been stopped waits anew."""
        self.best, self.waited = state["best"], state["waited"] if state["waited"] < self._patience else 0
