"""How far a run has come: the small, plain state that a checkpoint carries beside the tensors."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass
class Progress:
    """Finished epochs, optimizer steps, and the best test accuracy (fraction of 1) with its epoch (from 1)."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
