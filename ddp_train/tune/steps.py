"""Building blocks of measurements: training steps of any size on noise images, and straight lines through results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ddp_train.engine.components import Components
from ddp_train.models.sync_batch_norm import alone
from ddp_train.technique import Moment


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope * x."""

    intercept: float
    slope: float

    def __call__(self, x: float) -> float:
        """y at x."""
        return self.intercept + self.slope * x


def fit(points: Sequence[tuple[float, float]]) -> Line | None:
    """The line of least squares through (x, y); None where there are fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        return None
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    return Line(intercept, slope)


def largest_over_ranks(device: torch.device, *values: float) -> list[float]:
    """The largest of each value over all ranks. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    where = device if dist.get_backend() == "nccl" else torch.device("cpu")
    largest = torch.tensor(values, dtype=torch.float64, device=where)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return [float(value) for value in largest.tolist()]


class Steps:
    """Steps of a run's network on batches of any size; the weights change: a measurement restores them (`preserved`).

    The images are noise in the run's shape, on the device. Techniques that change images and targets are applied;
    loading and augmentation are left out.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._example = components.pipeline.dummy_batch()
        self._changes = [technique.batch for technique in components.techniques if technique.batch is not None]
        self._moment = Moment(0, 0, components.seed, components.ranks.rank)

    def together(self, batch: int) -> None:
        """A whole step with `batch` samples on each rank, including the all-reduce of the gradients."""
        self._gradients(self._components.model, batch)
        self._update()

    def alone(self, batch: int) -> None:
        """A whole step without any collective."""
        self.gradients(batch)
        self._update()

    def gradients(self, batch: int) -> None:
        """Forward and backward pass without any collective; the gradients are added to `.grad`."""
        with alone(self._components.network):
            ddp = self._components.ddp
            self._gradients(self._components.model if ddp is None else ddp.module, batch)

    def _gradients(self, model: nn.Module, batch: int) -> None:
        """Forward and backward of a random batch of this size."""
        components = self._components
        shape = (batch, *self._example.images.shape[1:])
        images = torch.randn(shape, device=components.device, dtype=self._example.images.dtype)
        if not self._example.images.is_contiguous():
            images = images.contiguous(memory_format=torch.channels_last)
        targets = self._example.labels.expand(batch).clone()
        for change in self._changes:
            images, targets = change(images, targets, self._moment)
        components.model.train()
        with components.precision.autocast():
            loss = components.loss(model(images), targets)
        components.precision.backward(loss, 1 / batch)

    def _update(self) -> None:
        """Step the optimizer, then drop the gradients."""
        self._components.precision.step(self._components.optimizer)
        self._components.optimizer.zero_grad(set_to_none=True)
