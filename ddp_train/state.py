"""How far a run has come: the small, plain state that a checkpoint carries beside the tensors, and its bad end."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Progress", "TrainingDiverged"]


class TrainingDiverged(Exception):
    """The loss is no longer a finite number: nothing that follows would mean anything. On all ranks alike."""


@dataclass
class Progress:
    """Finished epochs, optimizer steps, the best test accuracy (fraction of 1) with its epoch (from 1), and whether
    the run was ended before its last epoch."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    stopped: bool = False
