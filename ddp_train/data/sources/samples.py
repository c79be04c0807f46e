"""What the trainer knows as a dataset: two splits and the facts about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ddp_train.data.sources.bad_samples import BadSample, Policy

Padding = Literal["zero", "reflect"]


@dataclass(frozen=True, eq=False)
class Split:
    """labels: int64 [N]; images: uint8 [N, H, W, C], perhaps memory-mapped, or None where they are only in files."""

    labels: np.ndarray
    images: np.ndarray | None = None
    files: tuple[str, ...] | None = None
    """Image files to be decoded when they are needed, where the decoded images are too large to keep."""
    stamps: np.ndarray | None = None
    """int64 [N, 3]: size, mtime in ns and inode of each of `files`, which must not change during a run."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification dataset. mean and std: per channel of the training images, scaled to [0, 1]."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    flip_ok: bool = True
    """Whether a mirrored image is still of its class (a mirrored digit is not)."""
    padding: Padding = "reflect"
    """What a shifted image shows beyond its border."""
    largest_shift: int | None = None
    """Pixels by which augmentation may shift an image (None: an eighth of its shorter side)."""
    content: str | None = None
    """Hash of the training data; None for data that are not the user's files."""
    left_out: tuple[BadSample, ...] = ()
    """Files of the splits that are not in them, since they cannot be used."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    on_bad_sample: Policy = "stop"
    """What becomes of images that turn out bad while they are read."""


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of uint8 [N, H, W, C] scaled to [0, 1]; exact, by histograms.

    The deviation is at least one grey level, so that images of a single colour can be divided by it.
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[3]):
        histogram = np.zeros(256, dtype=np.int64)
        for first in range(0, len(images), 4096):
            chunk = images[first : first + 4096, :, :, channel]
            histogram += np.bincount(chunk.ravel(), minlength=256)
        share = histogram / histogram.sum()
        mean = float(share @ levels)
        means.append(mean)
        deviations.append(max(float(np.sqrt(share @ (levels - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(deviations)


def dataset_in_memory(name: str, classes: tuple[str, ...], train: Split, test: Split, **further: Any) -> Dataset:
    """A dataset of decoded images; mean, deviation and shape are those of the training images."""
    assert train.images is not None
    _, height, width, channels = train.images.shape
    mean, std = channel_statistics(train.images)
    return Dataset(name, classes, train, test, mean, std, (channels, height, width), **further)
