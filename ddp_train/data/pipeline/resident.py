"""The pipeline for data that fit into memory: decoded images stay on the device as uint8.

Nothing is read, decoded, collated or copied during an epoch; a batch is a few tensor operations. The
draws of a whole epoch are made at its start. There is no host synchronisation anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddp_train.data.augment.augmentation import Augmentation, Draws
from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.data.pipeline.window import Batch, Cut, DatasetPipeline, Window, never, to_device
from ddp_train.data.sources.samples import Dataset, Split

_CHUNK = 4096  # images padded at a time, which limits the temporary memory


class ResidentPipeline(DatasetPipeline):
    """Keeps the splits on the device, the training images padded once for the crop. All images must be decoded."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, sampler: GlobalBatchSampler, cut: Cut) -> None:
        super().__init__(dataset, augmentation, sampler, cut)
        self._padded = _pad_all(dataset.train, augmentation)
        self._placed: dict[str, tuple[slice, Tensor, Tensor]] = {}
        self._place(self.selection)

    @property
    def resident(self) -> bool:
        """See Pipeline: True."""
        return True

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        """See Pipeline."""
        self.sampler.set_epoch(epoch)
        shares = list(self.sampler.plan(start_step))
        if not shares:
            return
        order = self.sampler.order(self.device)
        visits = torch.cat([order[share.start : share.stop] for share in shares])
        draws, rows = self.augmentation.draw(visits, epoch), visits % len(order)
        labels = self._train_labels.index_select(0, rows)
        first = 0
        for share, weight in zip(shares, self._global_weights(start_step), strict=False):
            parts, shards = self._micro_batches(first, share)
            batches = (self._batch(rows[a:b], draws[a:b], labels[a:b]) for a, b in parts)
            samples = share.stop - share.start
            yield Window(batches, len(parts), samples, share.global_size, shards, class_weight=weight)
            first += samples

    def _batch(self, rows: Tensor, draws: Draws, labels: Tensor) -> Batch:
        """The augmented batch of these rows."""
        return Batch(self.augmentation.apply(self._padded, rows, draws), labels, rows)

    def evaluate(self, split: str | None = None, interrupted: Callable[[], bool] = never) -> Iterator[Batch]:
        """See Pipeline."""
        batches, images, labels = self._place(split or self.selection)
        for start, stop in batches:
            if interrupted():
                return
            part = slice(start - batches[0][0], stop - batches[0][0])
            indices = torch.arange(start, stop, device=self.device)
            yield Batch(self.augmentation.normalise(images[part]), labels[part], indices)

    def _place(self, name: str) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
        """Bounds of this rank's batches of a held-out split; their images and labels, on the device."""
        split = self._held_out[name]
        batches = self.sampler.in_order(len(split), self.test_batch)
        part = slice(batches[0][0], batches[-1][1]) if batches else slice(0, 0)
        if name not in self._placed or self._placed[name][0] != part:
            images, labels = to_device(split.take(part), self.device), to_device(split.labels[part], self.device)
            self._placed[name] = part, images, labels
        return batches, *self._placed[name][1:]

    def dummy_batch(self) -> Batch:
        """See Pipeline."""
        rows = torch.zeros(1, dtype=torch.int64, device=self.device)
        return self._batch(rows, self.augmentation.draw(rows, 0), self._train_labels[:1])


def _pad_all(split: Split, augmentation: Augmentation) -> Tensor:
    """uint8 [N, H, W, C] on the host -> [N, H + 2 pad, W + 2 pad, C] on the device."""
    device, pad, count = augmentation.device, augmentation.pad_pixels, len(split)
    if pad == 0:
        return to_device(split.take(slice(None)), device)
    _, height, width, channels = split.take(slice(0, 1)).shape
    padded = torch.empty((count, height + 2 * pad, width + 2 * pad, channels), dtype=torch.uint8, device=device)
    for first in range(0, count, _CHUNK):
        chunk = to_device(split.take(slice(first, first + _CHUNK)), device)
        padded[first : first + len(chunk)] = augmentation.pad(chunk)
    return padded
