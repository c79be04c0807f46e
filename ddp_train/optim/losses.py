"""Loss functions that return SUMS over samples, so that a global mean can be taken over any split of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [n, classes], labels int64 [n]) -> sum of the n losses, a scalar tensor."""
GRAINS = 2.0**24


def cross_entropy_sum(label_smoothing: float = 0.0, class_weights: torch.Tensor | None = None) -> Loss:
    """Cross-entropy in float32, summed over the samples.

    `label_smoothing` spreads that share of each target evenly over all classes (Szegedy et al. 2016,
    arXiv:1512.00567). `class_weights`: float32 [classes]; the weighted mean is the sum divided by the sum of the
    samples' weights, as torch's CrossEntropyLoss has it.
    """

    tables: dict[tuple[torch.device, int], torch.Tensor] = {}

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the losses of `logits` [n, classes] for `labels`."""
        if label_smoothing and class_weights is None and labels.ndim == 1:
            # The same formula in half as many operations: kernel launches dominate the step time of a small network.
            key = logits.device, logits.shape[1]
            if key not in tables:
                tables[key] = -smoothed_targets(logits.shape[1], label_smoothing, logits.device)
            return (nn.functional.log_softmax(logits.float(), 1) * tables[key].index_select(0, labels)).sum()
        return nn.functional.cross_entropy(
            logits.float(), labels, weight=class_weights, reduction="sum", label_smoothing=label_smoothing
        )

    return loss


def smoothed_targets(classes: int, label_smoothing: float, device: torch.device) -> torch.Tensor:
    """The smoothed target of each class, float32 [classes, classes]: `label_smoothing` of a row is spread evenly."""
    table = torch.full((classes, classes), label_smoothing / classes, device=device)
    return table + (1 - label_smoothing) * torch.eye(classes, device=device)


def summable(loss: torch.Tensor) -> torch.Tensor:
    """A sum of losses in float64, rounded to a multiple of 2^-24.

    float64 adds such numbers up without rounding as long as the sum is below 2^29, so a mean over an epoch does not
    depend on the order, or on which rank adds up what.
    """
    return (loss.double() * GRAINS).round_().div_(GRAINS)
