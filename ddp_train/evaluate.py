"""Exact evaluation: every test sample counts once, whatever the world size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ddp_train.data.pipeline import Batch
from ddp_train.distributed import sum_over_ranks
from ddp_train.losses import cross_entropy_sum
from ddp_train.precision import Precision

__all__ = ["Scores", "evaluate"]


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy (without label smoothing) and accuracy (fraction of 1) over `samples` images."""

    loss: float
    accuracy: float
    samples: int


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], precision: Precision) -> Scores:
    """Evaluate over the parts of all ranks; each rank passes its own share of the test set.

    `batches`: images [n, C, H, W], labels int64 [n]. Sums are taken in float64 and divided once.
    """
    loss_sum = cross_entropy_sum()
    was_training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=precision.device)
    for batch in batches:
        with precision.autocast():
            logits = model(batch.images)
        correct = (logits.argmax(1) == batch.labels).sum()
        totals[0] += loss_sum(logits, batch.labels)
        totals[1] += correct
        totals[2] += len(batch.labels)
    model.train(was_training)
    loss, correct_count, samples = sum_over_ranks(totals).tolist()
    return Scores(loss / max(1.0, samples), correct_count / max(1.0, samples), int(samples))
