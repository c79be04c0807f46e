"""The pipeline for data that fit: decoded images stay in the device's memory as uint8.

Nothing is read, decoded, collated or copied during an epoch; a batch is a few tensor operations. The
draws of a whole epoch are made at its start. There is no host synchronisation anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ddp_train.data.augment.augmentation import Augmentation, Draws
from ddp_train.data.pipeline.sampler import GlobalBatchSampler, RankPart
from ddp_train.data.pipeline.window import Batch, Cut, DatasetPipeline, Window, to_device
from ddp_train.data.sources.samples import Dataset

_CHUNK = 4096  # images padded at a time: bounds the memory beside the result


class ResidentPipeline(DatasetPipeline):
    """Both splits on `device`; the training images padded once, for the crop. Their images have to be decoded."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, sampler: GlobalBatchSampler, cut: Cut) -> None:
        super().__init__(dataset, augmentation, sampler, cut)
        assert dataset.train.images is not None and dataset.test.images is not None
        self._padded = _pad_all(dataset.train.images, augmentation)
        self._test = dataset.test
        self._test_part: slice | None = None
        self._place_test_part()

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        self.sampler.set_epoch(epoch)
        shares = list(self.sampler.plan(start_step))
        if not shares:
            return
        order = self.sampler.order(self.device)
        rows = torch.cat([order[share.start : share.stop] for share in shares])
        draws = self.augmentation.draw(rows, epoch)
        first = 0
        for share in shares:
            last = first + share.stop - share.start
            yield self._window(rows, draws, first, last, share)
            first = last

    def _window(self, rows: Tensor, draws: Draws, first: int, last: int, share: RankPart) -> Window:
        parts, shards = self._micro_batches(first, share)
        batches = (self._batch(rows[start:stop], draws[start:stop]) for start, stop in parts)
        return Window(batches, len(parts), last - first, share.global_size, shards)

    def _batch(self, rows: Tensor, draws: Draws) -> Batch:
        images = self.augmentation.apply(self._padded, rows, draws)
        return Batch(images, self._train_labels.index_select(0, rows), rows)

    def evaluate(self) -> Iterator[Batch]:
        batches = self._place_test_part()
        for start, stop in batches:
            part = slice(start - batches[0][0], stop - batches[0][0])
            indices = torch.arange(start, stop, device=self.device)
            yield Batch(self.augmentation.normalise(self._test_images[part]), self._test_labels[part], indices)

    def _place_test_part(self) -> list[tuple[int, int]]:
        """Bounds of this rank's batches of the test split; their images are on the device after this."""
        batches = self.sampler.in_order(len(self._test), self._test_batch)
        part = slice(batches[0][0], batches[-1][1]) if batches else slice(0, 0)
        if part != self._test_part:
            assert self._test.images is not None
            self._test_images = to_device(self._test.images[part], self.device)
            self._test_labels = to_device(self._test.labels[part], self.device)
            self._test_part = part
        return batches

    def dummy_batch(self) -> Batch:
        rows = torch.zeros(1, dtype=torch.int64, device=self.device)
        return self._batch(rows, self.augmentation.draw(rows, 0))


def _pad_all(images: np.ndarray, augmentation: Augmentation) -> Tensor:
    """uint8 [N, H, W, C] on the host -> [N, H + 2 pad, W + 2 pad, C] on the device."""
    device, pad = augmentation.device, augmentation.pad_pixels
    if pad == 0:
        return to_device(images, device)
    count, height, width, channels = images.shape
    padded = torch.empty((count, height + 2 * pad, width + 2 * pad, channels), dtype=torch.uint8, device=device)
    for first in range(0, count, _CHUNK):
        chunk = to_device(images[first : first + _CHUNK], device)
        padded[first : first + len(chunk)] = augmentation.pad(chunk)
    return padded
