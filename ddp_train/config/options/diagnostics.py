"""Options of diagnostics and records; none of them changes what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, When, option


@dataclass(frozen=True, kw_only=True)
class DiagnosticsOptions:
    """Diagnostics and records"""

    gradient_flow: bool = option(
        False, "Record the mean and largest |gradient| of each layer at the progress reports; plotted at the end."
    )
    histograms: bool = option(False, "Histograms of weights and activations in TensorBoard, once an epoch.")
    profile: bool = option(
        False, "Profile five steps after warm-up: a trace and a table of the most expensive operations."
    )
    watch_numbers: bool = option(
        False, "Check every step; a non-finite loss or gradient ends the run and names the layer, step and rank."
    )
    overfit_one_batch: int | None = option(
        None,
        "Instead of training: up to this many steps on one batch, whose loss must fall to near zero (else status 1).",
        Range(1, 10**6),
        excludes={When("tune"): "each replaces the training"},
    )
    initial_loss_check: bool = option(True, "Warn when the loss of the first step is far from ln(classes).")
    memory_report: bool = option(
        False,
        "Peak memory of forward pass, backward pass, optimizer step and evaluation, as a table at the end and as JSON.",
    )
    examine: bool = option(
        True, "At the end of the run: confusion matrix and worst-classified images of the best model."
    )
    tta: Literal["none", "flip", "flip+shifts"] = option(
        "none", "At the end of the run: the best model's accuracy with test-time augmentation as well."
    )
    tta_below: float | None = option(
        None,
        "Augment only test images whose highest probability is below this (default: all).",
        Range(0, 1, exclusive=True),
        only_with=When("tta", "flip", "flip+shifts"),
    )
    wandb: bool = option(
        False, "Also log to Weights & Biases (needs the package wandb; WANDB_MODE=offline needs no account)."
    )
    wandb_project: str = option("ddp-train", "wandb: the project.")
