"""Options of looking inside a run and of its records; none of them changes what is trained."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LookingOptions"]


@dataclass(frozen=True, kw_only=True)
class LookingOptions:
    """Looking inside and records"""

    gradient_flow: bool = False
    """Record mean and largest |gradient| of each layer at the progress reports; drawn at the end."""
    histograms: bool = False
    """Histograms of weights and activations into TensorBoard, once an epoch."""
