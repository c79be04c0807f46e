"""Datasets that need no files: scikit-learn's digits, and made-up images for tests, measurements and trial launches.

digits: 1,797 handwritten digits of 8 x 8 pixels and 17 grey levels; the test split is a fixed fifth of each class, as
scikit-learn has none. synthetic: each class has its own coarse colour pattern, and a sample is its class's pattern
under noise, so that a network can learn them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ddp_train.data.augment import keyed_random
from ddp_train.data.sources.samples import Dataset, Split, dataset_in_memory

_SPLIT_SEED = 0
_TEST_FRACTION = 0.2
# Twice the original size: networks with four poolings fit, and a shift by one pixel is half an original pixel.
_DIGIT_PX = 16
_CLASSES, _SIDE, _CELLS = 10, 32, 4


def load_digits() -> Dataset:
    """Grey images of 16 x 16 pixels, enlarged bilinearly."""
    from sklearn.datasets import load_digits as load_from_sklearn

    data = load_from_sklearn()
    small = np.asarray(data.images * (255 / 16)).round().astype(np.uint8)
    large = (Image.fromarray(image).resize((_DIGIT_PX, _DIGIT_PX), Image.Resampling.BILINEAR) for image in small)
    images = np.stack([np.asarray(image) for image in large])[..., None]
    labels = np.asarray(data.target, dtype=np.int64)
    held_out = stratified(labels, _TEST_FRACTION)
    train, test = (Split(labels[chosen], images[chosen]) for chosen in (~held_out, held_out))
    classes = tuple(str(digit) for digit in range(10))
    return dataset_in_memory("digits", classes, train, test, flip_ok=False, padding="zero", largest_shift=1)


def stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A fixed random part of each class: bool [N]."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        key = keyed_random.key(_SPLIT_SEED, int(label), keyed_random.SPLIT)
        order = keyed_random.permutation(len(members), key).numpy()
        chosen[members[order[: round(len(members) * fraction)]]] = True
    return chosen


def load_synthetic(samples: int) -> Dataset:
    """`samples` training images of 32 x 32 in 10 equally frequent classes, and a quarter as many for testing.

    The same at every call.
    """
    patterns = np.random.default_rng(1).integers(64, 192, (_CLASSES, _CELLS, _CELLS, 3), dtype=np.uint8)
    patterns = patterns.repeat(_SIDE // _CELLS, axis=1).repeat(_SIDE // _CELLS, axis=2)
    train, test = _split(patterns, samples, stream=2), _split(patterns, max(_CLASSES, samples // 4), stream=3)
    return dataset_in_memory("synthetic", tuple(f"pattern {i}" for i in range(_CLASSES)), train, test)


def _split(patterns: np.ndarray, count: int, stream: int) -> Split:
    """`count` images, each the pattern of its class with noise."""
    labels = np.arange(count, dtype=np.int64) % _CLASSES
    noise = np.random.default_rng(stream).integers(0, 128, (count, _SIDE, _SIDE, 3), dtype=np.uint8)
    noise += patterns[labels] - 64  # 0 .. 254: no overflow
    return Split(labels, noise)
