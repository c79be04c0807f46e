"""The pipeline for data that do not fit into memory: a DataLoader reads uint8 images, the device augments batches.

Worker processes read decoded images from the memory-mapped cache, or decode image files. They know nothing
of epochs: the order comes from the sampler, and the draws are keyed, so workers may persist over epochs.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from ddp_core.errors import UserError
from ddp_train.data.augment.augmentation import Augmentation
from ddp_train.data.pipeline.bad_sample_vote import Agreement
from ddp_train.data.pipeline.sampler import GlobalBatchSampler, RankPart
from ddp_train.data.pipeline.window import Batch, Cut, DatasetPipeline, Window, never, to_device
from ddp_train.data.sources.decode import end_with_parent, read_unchanged
from ddp_train.data.sources.pixels import Unreadable
from ddp_train.data.sources.samples import BadSample, Dataset, Split

_FULL = (
    "/dev/shm is full: the loader's workers cannot hand over their images; --num-workers 0 needs none of it, and in a "
    "container --shm-size gives more"
)
_TRIES = 64  # images that `dummy_batch` tries until one can be read
_SOCKET_PATH, _SOCKET_NAME = 107, len("/listener-12345678")
Read = tuple[Tensor, Tensor, list[BadSample]]
"""uint8 images [n, H, W, C], their visits (GlobalBatchSampler.order), int64 [n], and what could not be read."""


class ImageReader(TorchDataset[Any]):
    """Reads a whole batch at once, from decoded images or from files.

    An image that cannot be read is returned, not raised: the DataLoader would bury the one line in two tracebacks.
    """

    def __init__(self, split: Split, size: tuple[int, int], part: str) -> None:
        self.split, self.size, self.part = split, size, part

    def __getitem__(self, indices: list[int]) -> Read:
        chosen = np.asarray(indices, dtype=np.int64)
        if self.split.files is None:
            return *_to_hand_over(self.split.take(chosen % len(self.split)), chosen), []
        images, kept, bad = [], [], []
        for visit in indices:
            index = visit % len(self.split)
            row = self.split.row(index)
            file, stamp = self.split.files[row], None if self.split.stamps is None else self.split.stamps[row]
            try:
                images.append(read_unchanged(file, self.size, self.split.reading, stamp))
                kept.append(visit)
            except Unreadable as error:
                bad.append(BadSample(self.part, index, file, str(error)))
        stacked = np.stack(images) if images else np.zeros((0, *self.size, 3), np.uint8)
        return *_to_hand_over(stacked, np.array(kept, np.int64)), bad


def _to_hand_over(images: np.ndarray, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """The arrays as tensors, which a worker process moves to shared memory.

    If the thread of the worker's queue did that, an error would be lost, and the trainer would wait forever.
    """
    tensors = torch.from_numpy(images), torch.from_numpy(indices)
    if get_worker_info() is not None:
        for tensor in tensors:
            if tensor.numel():
                tensor.share_memory_()
    return tensors


class LoaderPipeline(DatasetPipeline):
    """num_workers: processes that read training images, half as many again for testing; 0 reads in this process."""

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        sampler: GlobalBatchSampler,
        cut: Cut,
        *,
        num_workers: int = 0,
        prefetch_factor: int = 4,
        agreement: Agreement | None = None,
    ) -> None:
        super().__init__(dataset, augmentation, sampler, cut)
        size = dataset.image_shape[1:]
        self._agreement = agreement
        self._train_reader = ImageReader(dataset.train, size, "train")
        # The indices of each batch, which the DataLoader goes through; filled for each epoch.
        self._train_batches: list[list[int]] = []
        # Images come from the workers through sockets in the folder for temporary files. If the kernel refused their
        # path (unix(7): 108 bytes), torch would wait for the first batch forever.
        if num_workers and len(os.fsencode(folder := get_temp_dir())) + _SOCKET_NAME > _SOCKET_PATH:
            raise UserError(
                f"--num-workers {num_workers}: the folder for temporary files, {Path(folder).parent}, has too long a"
                " name for the workers' sockets: TMPDIR=/tmp, or --num-workers 0"
            )
        self._train_loader = self._loader(self._train_reader, self._train_batches, num_workers, prefetch_factor)
        self._evaluated: dict[str, tuple[Tensor, list[list[int]], DataLoader[Any]]] = {}
        for name, split in dataset.held_out.items():  # their workers start with the first evaluation
            batches: list[list[int]] = []
            loader = self._loader(ImageReader(split, size, name), batches, (num_workers + 1) // 2, prefetch_factor)
            self._evaluated[name] = to_device(split.labels, self.device), batches, loader

    def _loader(self, reader: ImageReader, batches: list[list[int]], workers: int, prefetch: int) -> DataLoader[Any]:
        """A DataLoader over `batches`, which the caller may change between epochs."""
        parent = os.getpid()
        return DataLoader(
            reader,
            batch_size=None,  # the reader makes batches itself
            sampler=batches,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # shares the memory map, and starts at once
            worker_init_fn=lambda number: end_with_parent(parent),
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers > 0 else None,
            generator=torch.Generator(),  # else each epoch would draw from the global generator
        )

    @property
    def left_out(self) -> int:
        """Training samples left out so far because they cannot be decoded."""
        return self._agreement.count if self._agreement is not None else 0

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        """See Pipeline."""
        self.sampler.set_epoch(epoch)
        windows = [(part, indices, *self._micro_batches(0, part)) for part, indices in self.sampler.windows(start_step)]
        self._train_batches[:] = [
            indices[start:stop].tolist() for _, indices, bounds, _ in windows for start, stop in bounds if start < stop
        ]
        loaded = _start(self._train_loader) if self._train_batches else iter(())
        weights = self._global_weights(start_step)
        for (part, indices, bounds, shards), weight in zip(windows, weights, strict=False):
            reads = (_next(loaded) if start < stop else None for start, stop in bounds)
            if self._agreement is not None:
                yield self._checked(list(reads), shards, part, epoch, weight)
                continue
            batches = (self._augmented(read, epoch) for read in reads)
            yield Window(batches, len(bounds), len(indices), part.global_size, shards, class_weight=weight)
            for _ in batches:  # unused batches must not turn up in the next window
                pass

    def _checked(
        self, reads: list[Read | None], shards: tuple[int, ...], part: RankPart, epoch: int, weight: float | None
    ) -> Window:
        """The window without the images that could not be read, on this rank and on others."""
        assert self._agreement is not None
        bad = self._agreement.settle("train", [bad for read in reads if read is not None for bad in read[2]])
        kept = [n for n, read in enumerate(reads) if self.equal_passes or (read is not None and len(read[1]))]
        samples = sum(len(read[1]) for read in reads if read is not None)
        batches = (self._augmented(reads[n], epoch) for n in kept)
        left = max(1, part.global_size - len(bad))
        shards = tuple(shards[n] for n in kept) if shards else ()
        if bad and weight is not None and self._weights is not None:
            lost = math.fsum(self._weights[[sample.index for sample in bad]].tolist())
            weight = weight - lost if len(bad) < part.global_size else 1.0
        return Window(batches, len(kept), samples, left, shards, part.global_size - left, weight)

    def _augmented(self, read: Read | None, epoch: int) -> Batch:
        """The batch on the device, augmented; an empty batch for None."""
        if read is None:
            shape = (0, *self._train_reader.size, self.augmentation.channels)
            read = torch.empty(shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), []
        images, visits = self._on_device(read)
        if not len(visits):
            return Batch(self.augmentation.normalise(images), visits, visits)
        indices = visits % len(self._train_labels)
        return Batch(self.augmentation(images, visits, epoch), self._train_labels.index_select(0, indices), indices)

    def _on_device(self, read: Read) -> tuple[Tensor, Tensor]:
        """Images and indices on the device. Errors: UserError for an unreadable sample that is not tolerated."""
        images, indices, bad = read
        if bad and self._agreement is None:
            raise UserError(str(bad[0]))
        return images.to(self.device, non_blocking=True), indices.to(self.device, non_blocking=True)

    def evaluate(self, split: str | None = None, interrupted: Callable[[], bool] = never) -> Iterator[Batch]:
        """See Pipeline."""
        bad: list[BadSample] = []
        labels, batches, loader = self._evaluated[split or self.selection]
        bounds = self.sampler.in_order(len(labels), self.test_batch)
        batches[:] = [list(range(*part)) for part in bounds]
        loaded = _start(loader) if bounds else iter(())
        for _ in bounds:
            if interrupted():
                break
            read = _next(loaded)
            bad += read[2]
            images, indices = self._on_device(read)
            if len(indices):
                yield Batch(self.augmentation.normalise(images), labels.index_select(0, indices), indices)
        if self._agreement is not None:
            self._agreement.settle(split or self.selection, bad)

    def dummy_batch(self) -> Batch:
        """See Pipeline; a training sample that can be decoded."""
        tries = (self._train_reader[[index]] for index in range(min(_TRIES, len(self._train_labels))))
        images, indices, _ = next((read for read in tries if len(read[1])), self._train_reader[[0]])
        return self._augmented((images, indices, []), 0)


def _start(loader: DataLoader[Any]) -> Iterator[Read]:
    """Start the workers; returns their batches. Errors: UserError where there is no memory for their queues."""
    try:
        return iter(loader)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(_FULL) from error


def _next(loaded: Iterator[Read]) -> Read:
    """The next batch. Errors: UserError where the workers have no memory to hand it over."""
    try:
        return next(loaded)
    except RuntimeError as error:
        if "shared memory" not in str(error) and "Bus error" not in str(error):
            raise
        raise UserError(_FULL) from error
