"""Training steps of any size with the parts of a run, for measurements: on made-up images, alone or with all ranks."""

from __future__ import annotations

import torch
from torch import nn

from ddp_train.engine.components import Components
from ddp_train.models.sync_batch_norm import alone
from ddp_train.technique import Moment


class Steps:
    """Steps of a run's network on batches of any size; the weights move, so that whoever measures puts them back.

    The images are noise in the run's shape, on the device; what techniques do to images and targets is done. Loading
    and augmenting are left out.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._example = components.pipeline.dummy_batch()
        self._changes = [technique.batch for technique in components.techniques if technique.batch is not None]
        self._moment = Moment(0, 0, components.seed, components.ranks.rank)

    def together(self, batch: int) -> None:
        """A whole step with so many samples on each rank, in which the ranks join their gradients."""
        self._gradients(self._components.model, batch)
        self._update()

    def alone(self, batch: int) -> None:
        """The same without any collective."""
        self.gradients(batch)
        self._update()

    def gradients(self, batch: int) -> None:
        """Forward and backward pass without any collective; the gradient is added to what is there."""
        with alone(self._components.network):
            ddp = self._components.ddp
            self._gradients(self._components.model if ddp is None else ddp.module, batch)

    def wait(self) -> None:
        """Return once the device has done what it was given."""
        if self._components.device.type == "cuda":
            torch.cuda.synchronize(self._components.device)

    def _gradients(self, model: nn.Module, batch: int) -> None:
        components = self._components
        shape = (batch, *self._example.images.shape[1:])
        images = torch.randn(shape, device=components.device).contiguous(memory_format=torch.channels_last)
        targets = self._example.labels.expand(batch).clone()
        for change in self._changes:
            images, targets = change(images, targets, self._moment)
        components.model.train()
        with components.precision.autocast():
            loss = components.loss(model(images), targets)
        components.precision.backward(loss, 1 / batch)

    def _update(self) -> None:
        self._components.precision.step(self._components.optimizer)
        self._components.optimizer.zero_grad(set_to_none=True)
