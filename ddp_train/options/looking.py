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
    profile: bool = False
    """Profile five steps after warm-up: a trace and a table of the operations that take most time."""
    watch_numbers: bool = False
    """Judge every step; a loss or gradient that is not finite ends the run with the layer, step and rank named."""
    initial_loss_check: bool = True
    """Say so when the loss of the first step is far from ln(classes)."""
    memory_report: bool = False
    """Peak memory of forward pass, backward pass, optimizer step and evaluation, as a table at the end and as JSON."""
