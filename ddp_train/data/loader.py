"""The pipeline for data that do not fit: a DataLoader reads uint8 images, the device augments whole batches.

Worker processes read decoded images from the memory-mapped cache, or decode image files. They know nothing
of epochs: the order comes from the sampler, and the draws are keyed, so workers may persist over epochs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ddp_train.data.augment import Augmentation
from ddp_train.data.dataset import Dataset, Split
from ddp_train.data.decode import read_image
from ddp_train.data.sampler import GlobalBatchSampler
from ddp_train.data.window import Batch, Window, micro_batches
from ddp_train.data.worker_process import end_with_parent
from ddp_train.options import UserError

__all__ = ["ImageReader", "LoaderPipeline"]


SOCKET_PATH, SOCKET_NAME = 107, len("/listener-12345678")


class ImageReader(TorchDataset[Any]):
    """Reads a whole batch at once: indices -> (uint8 [n, H, W, C], int64 [n]), or the text of a user's error.

    An error is returned, not raised: the DataLoader would bury the one line in two tracebacks.
    """

    def __init__(self, split: Split, size: tuple[int, int]) -> None:
        self.files = split.files
        self.size = size
        self.images = split.images
        self.count = len(split.labels)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor] | str:
        chosen = np.asarray(indices, dtype=np.int64)
        if self.files is not None:
            try:
                images = np.stack([read_image(self.files[i], self.size) for i in indices])
            except UserError as error:
                return str(error)
        else:
            assert self.images is not None
            images = self.images[chosen]
        return torch.from_numpy(images), torch.from_numpy(chosen)


class _Batches:
    """The lists of indices that the DataLoader asks for; set anew for each epoch."""

    def __init__(self) -> None:
        self.lists: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)


def _check_sockets(workers: int) -> None:
    """Images come from the workers through sockets in the folder for temporary files: with a path that the kernel
    refuses (unix(7): 108 bytes) torch would wait for the first batch without end. Errors: UserError."""
    if workers == 0:
        return
    folder = get_temp_dir()
    if len(os.fsencode(folder)) + SOCKET_NAME > SOCKET_PATH:
        raise UserError(
            f"--num-workers {workers}: the folder for temporary files, {Path(folder).parent}, has too long a name"
            " for the workers' sockets: TMPDIR=/tmp, or --num-workers 0"
        )


def _start_worker(parent: int, number: int) -> None:
    end_with_parent(parent)


class LoaderPipeline:
    """See window.Pipeline. num_workers: processes that read training images, half as many again for testing; 0
    reads in this process."""

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        sampler: GlobalBatchSampler,
        *,
        accumulate: int = 1,
        test_batches: Sequence[tuple[int, int]],
        equal_passes: bool = False,
        num_workers: int = 0,
        prefetch_factor: int = 4,
    ) -> None:
        self.sampler = sampler
        self.augmentation = augmentation
        self.device = augmentation.device
        self.accumulate = accumulate
        self.equal_passes = equal_passes
        self._train_labels = torch.from_numpy(np.ascontiguousarray(dataset.train.labels)).to(self.device)
        self._test_labels = torch.from_numpy(np.ascontiguousarray(dataset.test.labels)).to(self.device)
        size = dataset.image_shape[1:]
        self._train_reader = ImageReader(dataset.train, size)
        self._train_batches, self._test_batches = _Batches(), _Batches()
        self._test_batches.lists = [list(range(*bounds)) for bounds in test_batches]
        _check_sockets(num_workers)
        self._train_loader = self._loader(self._train_reader, self._train_batches, num_workers, prefetch_factor)
        test_reader, test_workers = ImageReader(dataset.test, size), (num_workers + 1) // 2
        self._test_loader = self._loader(test_reader, self._test_batches, test_workers, prefetch_factor)

    def _loader(self, reader: ImageReader, batches: _Batches, workers: int, prefetch: int) -> DataLoader[Any]:
        return DataLoader(
            reader,
            batch_size=None,  # the reader makes batches itself
            sampler=batches,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # shares the memory map, and starts at once
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers > 0 else None,
            generator=torch.Generator(),  # else each epoch would draw from, and move, the global one
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.steps_per_epoch

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        self.sampler.set_epoch(epoch)
        plans = list(self.sampler.windows(start_step))
        parts = [
            micro_batches(0, plan.shards, [1.0] * self.accumulate, min(plan.most, self.accumulate) * self.equal_passes)
            for plan in plans
        ]
        self._train_batches.lists = [
            plan.indices[start:stop].tolist()
            for plan, (part, _) in zip(plans, parts, strict=True)
            for start, stop in part
            if start < stop
        ]
        loaded = iter(self._train_loader) if self._train_batches.lists else iter(())
        for plan, (part, shards) in zip(plans, parts, strict=True):
            batches = (
                self._augmented(next(loaded), epoch) if start < stop else self._without_images() for start, stop in part
            )
            yield Window(batches, len(part), len(plan.indices), plan.global_size, shards)
            for _ in batches:  # what was not used must not turn up in the next window
                pass

    def _augmented(self, loaded: tuple[Tensor, Tensor] | str, epoch: int) -> Batch:
        images, indices = self._on_device(loaded)
        return Batch(self.augmentation(images, indices, epoch), self._train_labels.index_select(0, indices), indices)

    def _without_images(self) -> Batch:
        height, width, channels = *self._train_reader.size, self.augmentation.channels
        images = torch.empty((0, height, width, channels), dtype=torch.uint8, device=self.device)
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        return Batch(self.augmentation.normalise(images), nothing, nothing)

    def _on_device(self, loaded: tuple[Tensor, Tensor] | str) -> tuple[Tensor, Tensor]:
        if isinstance(loaded, str):
            raise UserError(loaded)
        images, indices = loaded
        return images.to(self.device, non_blocking=True), indices.to(self.device, non_blocking=True)

    def evaluate(self) -> Iterator[Batch]:
        if not self._test_batches.lists:
            return
        for loaded in self._test_loader:
            images, indices = self._on_device(loaded)
            yield Batch(self.augmentation.normalise(images), self._test_labels.index_select(0, indices), indices)

    def dummy_batch(self) -> Batch:
        return self._augmented(self._train_reader[[0]], 0)
