"""An epoch's loss, correct answers and samples on one rank, added up without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_train.optim.losses import summable

MOST = 64
"""Micro-batches that are collected and then added up at once, which costs as much as adding one."""


class Metrics:
    """The sums of the running epoch. The values of micro-batches stay on the device until the sums are needed.

    The additions are exact (see losses.summable), so that their order does not matter.
    """

    def __init__(self, device: torch.device) -> None:
        self._kept = torch.zeros(3, dtype=torch.float64, device=device)
        self._losses: list[Tensor] = []
        self._factors: list[float] = []
        self._correct: list[Tensor] = []
        self._samples = 0
        self._begun = (0, 0)  # micro-batches and samples before the running step

    def start(self, loss: float = 0.0, correct: float = 0.0, samples: float = 0.0) -> None:
        """Start an epoch with these sums, those of the part of it that was trained before a resume."""
        self._forget(0, 0)
        self._kept.copy_(torch.tensor([loss, correct, samples], dtype=torch.float64))

    def begin_step(self) -> None:
        """Mark the beginning of a step, to which `undo` returns."""
        if len(self._losses) >= MOST:
            self._add_up()
        self._begun = (len(self._losses), self._samples)

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a micro-batch. loss: the sum of its losses. A mixed target counts as its largest class."""
        self._losses.append(loss.detach())
        self._factors.append(1)
        self._correct.append(logits.detach().argmax(1) == (targets if targets.ndim == 1 else targets.argmax(1)))
        self._samples += targets.shape[0]

    def add_loss(self, loss: Tensor, samples: int, factor: float = 1) -> None:
        """Add a micro-batch of which only the sum of its losses is known, `factor` times `loss`.

        samples: 0 for a further loss of the same micro-batch.
        """
        self._losses.append(loss)
        self._factors.append(factor)
        self._samples += samples

    @property
    def of_step(self) -> Sequence[Tensor]:
        """The losses of the running step so far, one scalar for each micro-batch, without their factors."""
        return self._losses[self._begun[0] :]

    def undo(self) -> None:
        """Drop what was added since the step began."""
        self._forget(*self._begun)

    def total(self) -> Tensor:
        """Loss, correct answers, samples up to now: float64 [3] on the device, a copy."""
        self._add_up()
        return self._kept.clone()

    def _add_up(self) -> None:
        """Add the pending values to the sums."""
        if self._losses:
            losses = torch.stack(self._losses)
            if set(self._factors) != {1}:
                losses = losses.double() * losses.new_tensor(self._factors, dtype=torch.float64)
            loss = summable(losses).sum()
            correct = torch.cat(self._correct).sum() if self._correct else torch.zeros_like(loss)
            self._kept.add_(torch.stack([loss, correct.double(), loss.new_full((), self._samples)]))
        self._forget(0, 0)

    def _forget(self, micro_batches: int, samples: int) -> None:
        """Keep only so many pending micro-batches and samples."""
        del self._losses[micro_batches:], self._correct[micro_batches:], self._factors[micro_batches:]
        self._samples, self._begun = samples, (micro_batches, samples)
