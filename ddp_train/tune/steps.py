"""Training steps of any size with the parts of a run, for measurements: on made-up images, alone or with all ranks."""

from __future__ import annotations

import torch
from torch import nn

from ddp_train.engine.components import Parts
from ddp_train.models.sync_batch_norm import alone
from ddp_train.technique import Moment


class Steps:
    """Steps of a run's network on batches of any size; the weights move, so that whoever measures puts them back.

    The images are noise in the run's shape, on the device; what techniques do to images and targets is done. Loading
    and augmenting are left out.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._example = parts.pipeline.dummy_batch()
        self._changes = [technique.batch for technique in parts.techniques if technique.batch is not None]
        self._moment = Moment(0, 0, parts.seed, parts.ranks.rank)

    def together(self, batch: int) -> None:
        """A whole step with so many samples on each rank, in which the ranks join their gradients."""
        self._gradients(self._parts.model, batch)
        self._update()

    def alone(self, batch: int) -> None:
        """The same without any collective."""
        self.gradients(batch)
        self._update()

    def gradients(self, batch: int) -> None:
        """Forward and backward pass without any collective; the gradient is added to what is there."""
        with alone(self._parts.network):
            ddp = self._parts.ddp
            self._gradients(self._parts.model if ddp is None else ddp.module, batch)

    def wait(self) -> None:
        """Return once the device has done what it was given."""
        if self._parts.device.type == "cuda":
            torch.cuda.synchronize(self._parts.device)

    def _gradients(self, model: nn.Module, batch: int) -> None:
        parts = self._parts
        shape = (batch, *self._example.images.shape[1:])
        images = torch.randn(shape, device=parts.device).contiguous(memory_format=torch.channels_last)
        targets = self._example.labels.expand(batch).clone()
        for change in self._changes:
            images, targets = change(images, targets, self._moment)
        parts.model.train()
        with parts.precision.autocast():
            loss = parts.loss(model(images), targets)
        parts.precision.backward(loss, 1 / batch)

    def _update(self) -> None:
        self._parts.precision.step(self._parts.optimizer)
        self._parts.optimizer.zero_grad(set_to_none=True)
