"""The loss before anything is learned: ln(classes) for a network that prefers no class (`--initial-loss-check`).

Effect: one line when the loss of the first step is more than twice that, or less than half: a last layer that starts
too large, images that are not normalised, or labels that the network can see. Cost: one wait for the device, in the
first step of a run. It combines with everything. Source: Karpathy 2019, "A Recipe for Training Neural
Networks" ("verify loss @ init").
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_train.observers.records import Observer, RunFacts
from ddp_train.optim.losses import Loss
from ddp_train.technique import Context, Moment, Technique

FACTOR = 2.0


def create(context: Context) -> Technique:
    """`--initial-loss-check`, on unless it is switched off; the first rank looks at its share of the batch."""
    trained = context.config.model.weights is not None
    if not context.ranks.is_first or context.classes < 2 or trained:
        return Technique(name="initial_loss_check")
    check = _Check(context.classes, context.class_weights)
    return Technique(name="initial_loss_check", loss=check.loss, after_step=check.after_step, observer=check)


def judge(loss: float, classes: int) -> str | None:
    """The line for a suspicious mean loss of the first step, None where it is as expected."""
    expected = math.log(classes)
    usual = (
        f"the loss of the first step is {loss:.3g}; ln({classes} classes) = {expected:.3g} is usual without training"
    )
    if not loss <= FACTOR * expected:
        return f"{usual}: look at the scale of the last layer, and at the normalisation of the images"
    if loss < expected / FACTOR:
        return f"{usual}: unless these weights were trained before, the labels may be visible in the images"
    return None


class _Check(Observer):
    def __init__(self, classes: int, weights: Sequence[float] | None) -> None:
        self._classes, self._weights = classes, None if weights is None else torch.tensor(weights)
        self._loss: Tensor | float = 0.0
        self._samples = 0.0
        self._done = False

    def on_start(self, facts: RunFacts) -> None:
        """Drop the losses of the steps on noise that measured the ranks' speeds."""
        self._loss, self._samples = 0.0, 0.0

    def loss(self, inner: Loss) -> Loss:
        """Return the same loss function, which also adds up the losses of the first step."""

        def watched(logits: Tensor, targets: Tensor) -> Tensor:
            """`inner`, with its values in the first step added up."""
            value = inner(logits, targets)
            if not self._done:
                self._loss = self._loss + value.detach()
                self._samples += len(logits) if self._weights is None else self._weight(targets, self._weights)
            return value

        return watched

    @staticmethod
    def _weight(targets: Tensor, weights: Tensor) -> float:
        """The sum of the samples' class weights. targets: labels, or each sample's share of every class."""
        return float((weights[targets.cpu()] if targets.ndim == 1 else targets.cpu() @ weights).sum())

    def after_step(self, moment: Moment) -> None:
        """Judge once, in the first step of a run that was not resumed."""
        if self._done:
            return
        self._done = True
        line = judge(float(self._loss) / (self._samples or 1.0), self._classes) if moment.step == 0 else None
        if line is not None:
            print(f"note: {line}", file=sys.stderr, flush=True)
