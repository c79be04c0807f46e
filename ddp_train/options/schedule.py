"""Options of the learning rate over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ScheduleOptions"]


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Learning-rate schedule"""

    scheduler: Literal["cosine", "multistep", "constant"] = "cosine"
    """Learning rate over the run; multistep divides by 10 at 60% and 80%."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up from near zero."""
