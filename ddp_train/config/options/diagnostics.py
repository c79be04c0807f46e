"""Options of looking inside a run and of its records; none of them changes what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    overfit_one_batch: int | None = None
    """In place of training: up to so many steps on one batch, whose loss must fall to near zero (else status 1)."""
    initial_loss_check: bool = True
    """Say so when the loss of the first step is far from ln(classes)."""
    memory_report: bool = False
    """Peak memory of forward pass, backward pass, optimizer step and evaluation, as a table at the end and as JSON."""
    examine: bool = True
    """At the end of the run: confusion matrix and worst-classified images of the best model."""
    tta: Literal["none", "flip", "flip+shifts"] = "none"
    """At the end of the run: the best model's accuracy with test-time augmentation too."""
    tta_below: float | None = None
    """tta: only images whose highest probability is below this are seen in more than one way (None: all)."""
    wandb: bool = False
    """Log to Weights & Biases too (needs the package wandb; WANDB_MODE=offline works without an account)."""
    wandb_project: str = "ddp-train"
    """wandb: the project."""
