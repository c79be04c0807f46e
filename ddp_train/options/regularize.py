"""Options of regularisation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RegularizeOptions"]


@dataclass(frozen=True, kw_only=True)
class RegularizeOptions:
    """Regularisation"""

    label_smoothing: float = 0.0
    """Share of the target spread over the other classes."""
    early_stopping: int | None = None
    """End the run after so many epochs without a better test accuracy."""
    min_delta: float = 0.0
    """early_stopping: what counts as better, as a difference of accuracies (fractions of 1)."""
    technique: str | None = None
    """A technique of your own: package.module:function, more than one separated by commas."""
