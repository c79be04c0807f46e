"""The interface from a pipeline to the trainer: batches, grouped into windows of one optimizer step each."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ddp_train.config.batch_split import split
from ddp_train.data.augment.augmentation import Augmentation
from ddp_train.data.pipeline.sampler import GlobalBatchSampler, RankPart
from ddp_train.data.sources.samples import Dataset


def never() -> bool:
    """An evaluation that nothing interrupts."""
    return False


@dataclass(frozen=True, slots=True)
class Batch:
    """images: [n, C, H, W] of the pipeline's `image_dtype`, normalised, channels last unless --no-channels-last; labels
    and indices (in the split): int64 [n]. All on the device."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def take(self, rows: Tensor) -> Batch:
        """Some of the samples, in the same memory order. rows: int64."""
        if self.images.is_contiguous():
            images = self.images.index_select(0, rows)
        else:
            images = self.images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
        return Batch(images, self.labels.index_select(0, rows), self.indices.index_select(0, rows))


@dataclass(frozen=True, slots=True)
class Window:
    """This rank's part of one global batch. Must be consumed before the next window is taken."""

    batches: Iterator[Batch]
    """The micro-batches. None is empty, except those that give all ranks the same number of forward passes."""
    count: int
    """Number of micro-batches; 0 where this rank has no sample and needs no forward pass (see Pipeline.dummy_batch)."""
    samples: int
    """Samples of this rank."""
    size: int
    """Samples of the global batch, over all ranks."""
    shards: tuple[int, ...] = ()
    """The logical shard that each micro-batch belongs to."""
    skipped: int = 0
    """Samples of the global batch that could not be read: they are not in `size`."""
    class_weight: float | None = None
    """Sum of the class weights of the global batch's samples; None: every sample counts 1."""

    @property
    def weight(self) -> float:
        """The divisor that turns the sum of the global batch's losses into their mean."""
        return self.size if self.class_weight is None else self.class_weight


class Pipeline(Protocol):
    """The training and test samples of one rank, ready on its device."""

    sampler: GlobalBatchSampler
    """Determines the samples of each global batch, and this rank's part of them."""
    accumulate: int
    """Micro-batches of a window; may be changed before a `train`."""
    test_batch: int
    """Largest number of images of an evaluation batch; may be changed before an `evaluate`."""
    image_dtype: torch.dtype
    """float32; may be set to what autocast would cast the images to."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the same on all ranks."""
        return self.sampler.steps_per_epoch

    @property
    def selection(self) -> str:
        """The split that each epoch is evaluated on, and chosen by: "val" where there is one, else "test"."""
        return "test"

    @property
    def resident(self) -> bool:
        """Whether every image is on the device, so that no process reads any."""
        return False

    @property
    def left_out(self) -> int:
        """Images that turned out bad while they were read, so far; the same on all ranks."""
        return 0

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        """The windows of an epoch (counted from 0) from `start_step` on: the same ones as in a whole epoch."""

    def evaluate(self, split: str | None = None, interrupted: Callable[[], bool] = never) -> Iterator[Batch]:
        """This rank's share of a split, "test" or "val" (None: `selection`): each sample once over all ranks, none
        repeated; sizes may differ. interrupted: whether to end here; the ranks may have something to settle at the end,
        so do not leave the batches in another way."""

    def dummy_batch(self) -> Batch:
        """One training sample, for a rank that must take part in a step in which it has no sample."""


@dataclass(frozen=True)
class Cut:
    """How a pipeline cuts a rank's samples. accumulate: micro-batches per shard; equal_passes: the same number on every
    rank, some empty if need be; test_batch: largest number of images of an evaluation batch."""

    accumulate: int
    equal_passes: bool
    test_batch: int


class DatasetPipeline(Pipeline):
    """What the pipelines of a dataset have in common."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, sampler: GlobalBatchSampler, cut: Cut) -> None:
        self.sampler, self.augmentation, self.device = sampler, augmentation, augmentation.device
        self.accumulate, self.equal_passes, self.test_batch = cut.accumulate, cut.equal_passes, cut.test_batch
        self._train_labels = to_device(dataset.train.labels, self.device)
        self._held_out = dataset.held_out
        self._selection = dataset.selection
        weights = dataset.class_weights
        self._weights = None if weights is None else np.array(weights)[dataset.train.labels]
        """The weight of each training sample, by its class: float64 [N]."""

    @property
    def selection(self) -> str:
        """The split that chooses the best model."""
        return self._selection

    @property
    def image_dtype(self) -> torch.dtype:  # type: ignore[override]
        """See Pipeline."""
        return self.augmentation.dtype

    @image_dtype.setter
    def image_dtype(self, dtype: torch.dtype) -> None:
        self.augmentation.dtype = dtype

    def _global_weights(self, start_step: int) -> Iterator[float | None]:
        """The `class_weight` of the epoch's global batches from `start_step` on.

        fsum rounds once, whatever the order: the same number on every rank.
        """
        if self._weights is None:
            yield from itertools.repeat(None)
            return
        of_order = self._weights[(self.sampler.order() % len(self._weights)).numpy()]
        size = self.sampler.global_batch
        for first in range(start_step * size, self.sampler.total_size, size):
            yield math.fsum(of_order[first : min(first + size, self.sampler.total_size)].tolist())

    def _micro_batches(self, start: int, part: RankPart) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        """The bounds and shards of this rank's micro-batches in a window."""
        least = min(part.most, self.accumulate) if self.equal_passes else 0
        return micro_batches(start, part.shards, [1.0] * self.accumulate, least)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """On the CPU the tensor shares the array's memory, which the ranks of a node share when it is memory-mapped."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def micro_batches(
    start: int, shards: Sequence[tuple[int, int]], parts: Sequence[float], least: int = 0
) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """The micro-batches that each shard is cut into, in proportion to `parts`: their bounds, and the shard of each.

    start: where the first shard begins; shards: numbers and samples, in order. No micro-batch is empty,
    unless fewer than `least` are left: empty ones follow then.
    """
    bounds, numbers = _cut(tuple(shards), tuple(parts), least)
    return [(start + low, start + high) for low, high in bounds], numbers


@functools.lru_cache(64)
def _cut(
    shards: tuple[tuple[int, int], ...], parts: tuple[float, ...], least: int
) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """See micro_batches; the first shard begins at 0. All global batches of an epoch but the last are cut alike."""
    start, bounds, numbers = 0, [], []
    for shard, samples in shards:
        for length in split(samples, parts):
            if length:
                bounds.append((start, start + length))
                numbers.append(shard)
            start += length
    missing = max(0, least - len(bounds))
    return bounds + [(start, start)] * missing, (*numbers, *[shards[-1][0]] * missing)
