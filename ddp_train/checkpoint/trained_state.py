"""Contents of a checkpoint of the bundled trainer: network, optimizer, loss scale, and the state of the techniques."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_train import optim
from ddp_train.checkpoint.progress import Progress, machine_differences, why_not_resumed
from ddp_train.checkpoint.values import checked_copy
from ddp_train.technique import Context, Technique


class TrainedState:
    """See checkpoint.manager.Contents. `identity`: description of this run (checkpoint.progress.describe_run)."""

    names: tuple[str, ...] = ("model", "optimizer", "optimizer_class", "scaler", "techniques")

    def __init__(
        self,
        context: Context,
        techniques: Sequence[Technique],
        optimizer: torch.optim.Optimizer,
        identity: Mapping[str, Any],
    ) -> None:
        self._network, self._precision, self._optimizer = context.network, context.precision, optimizer
        self._states = {t.name: t.state for t in techniques if t.state is not None}
        self._looks = {t.name for t in techniques if t.looks}
        self.identity = identity

    def state_dict(self) -> dict[str, Any]:
        """See Contents."""
        return {
            "model": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "optimizer_class": optim.describe(self._optimizer),
            "scaler": self._precision.state_dict(),
            "techniques": {name: technique.state_dict() for name, technique in self._states.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Contents. The optimizer keeps its own rates, decay and the like, which follow this run's options.

        Errors: also ValueError where the saved run lacks a technique of this run: its state would have to be invented.
        """
        if state["optimizer_class"] != optim.describe(self._optimizer):
            raise ValueError(f"it was trained with {state['optimizer_class']}")
        self._network.load_state_dict(state["model"])
        optim.restore(self._optimizer, state["optimizer"])
        self._precision.load_state_dict(state["scaler"])
        for name, technique in self._states.items():
            if name in state["techniques"]:
                technique.load_state_dict(state["techniques"][name])
            elif name not in self._looks:
                raise ValueError(f"it was trained without {name}")

    def check(self) -> None:
        """Errors: UserError for a state that no checkpoint can hold, such as an array that a user's network adds."""
        try:
            checked_copy(self.state_dict(), "state", lambda tensor: tensor)
        except TypeError as error:
            raise UserError(f"no checkpoint could be written: {error}") from None

    def weights(self) -> Iterable[Tensor]:
        """See Contents."""
        return self._network.state_dict().values()

    def why_not(self, saved: Mapping[str, Any], progress: Progress) -> str | None:
        """See Contents."""
        return why_not_resumed(saved, self.identity, progress)

    def resumed(self, saved: Mapping[str, Any], progress: Progress) -> tuple[str, ...]:
        """See Contents. Returns a line where --reproducible cannot guarantee the same bits."""
        if self.identity["config"]["epochs"] > saved.get("config", {}).get("epochs", math.inf):
            progress.stopped = False  # more epochs were asked for than the run had when it was stopped early
        if progress.step_in_epoch == 0:
            progress.step = progress.epoch * self.identity["steps_per_epoch"]  # another global batch, perhaps
        changed = machine_differences(saved, self.identity)
        if not (self.identity["config"]["reproducible"] and changed):
            return ()
        return (f"--reproducible: the bits may differ from those of before ({', '.join(changed)})",)
