"""`run.best(...)`: the best epoch of a run, and a copy of its weights until they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.checkpoint.progress import Progress


class Weights:
    """A copy of a network's state, as it is now."""

    def __init__(self, network: nn.Module) -> None:
        self._state = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in network.state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Names and tensors."""
        return self._state


class BestEpoch:
    """The best epoch of `progress`'s run. A metric counts from the end of its epoch, when the weights are written too.

    keeps: whether this rank writes them. in_hand: whether a loop over a loader is running. If the lowest metric is the
    best, `best_accuracy` holds its negative and `best_loss` the metric itself.
    """

    def __init__(self, progress: Progress, *, keeps: bool, in_hand: Callable[[], bool]) -> None:
        self._progress, self._keeps, self._in_hand = progress, keeps, in_hand
        self._offered: tuple[float, bool, Weights | None] | None = None

    def offer(self, metric: float, network: nn.Module, *, lowest: bool) -> bool:
        """See Run.best."""
        progress = self._progress
        if self._in_hand():
            raise UserError(
                "run.best() within a loop over a run.loader(...): call it after the loop; best_model.pth and the "
                "checkpoint are written at the end of the epoch"
            )
        if progress.best_epoch and lowest is not math.isfinite(progress.best_loss):
            kind = "highest" if lowest else "lowest"
            raise UserError(f"run.best(lowest={lowest}): so far the {kind} metric of this run was the best")
        value = -metric if lowest else metric
        best = progress.best_accuracy if progress.best_epoch else -math.inf
        if self._offered is not None:
            best = max(best, self._offered[0])
        if math.isnan(value) or (value <= best and (progress.best_epoch or self._offered is not None)):
            return False
        self._offered = value, lowest, Weights(network) if self._keeps else None
        return True

    def take(self) -> Weights | None:
        """End an epoch. Returns its weights if it is the best so far and this rank writes them."""
        if self._offered is None:
            return None
        progress, (value, lowest, weights) = self._progress, self._offered
        progress.best_accuracy, progress.best_epoch = value, progress.epoch + 1
        progress.best_loss = -value if lowest else math.inf
        self._offered = None
        return weights

    def summary(self) -> dict[str, Any]:
        """Epoch and metric, for the records."""
        progress = self._progress
        metric = progress.best_loss if math.isfinite(progress.best_loss) else progress.best_accuracy
        return {"epoch": progress.best_epoch or None, "metric": metric if progress.best_epoch else None}
