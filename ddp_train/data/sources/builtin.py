"""scikit-learn's bundled digits: 1,797 handwritten digits of 8 x 8 pixels and 17 grey levels, always at hand.

The test split is a fixed fifth of each class (scikit-learn has none of its own).

Made-up images that need no files: for tests, measurements and trying out a launch.

Each class has its own coarse colour pattern; a sample is its class's pattern under noise, so a network learns them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ddp_train.data.augment import keyed_random
from ddp_train.data.sources.samples import Dataset, Split, channel_statistics

_SPLIT_SEED = 0
_TEST_SHARE = 0.2
_DIGIT_PX = (
    16  # twice the original: networks with four poolings fit, and a shift by one pixel is by half an original one
)


def load_digits() -> Dataset:
    """Grey images of 16 x 16 pixels, enlarged bilinearly."""
    from sklearn.datasets import load_digits as load_from_sklearn

    data = load_from_sklearn()
    images = _enlarged(np.asarray(data.images * (255 / 16)).round().astype(np.uint8))
    labels = np.asarray(data.target, dtype=np.int64)
    held_out = stratified(labels, _TEST_SHARE)
    train, test = (Split(labels[chosen], images[chosen]) for chosen in (~held_out, held_out))
    assert train.images is not None
    mean, std = channel_statistics(train.images)
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(
        "digits",
        classes,
        train,
        test,
        mean,
        std,
        (1, _DIGIT_PX, _DIGIT_PX),
        flip_ok=False,
        padding="zero",
        largest_shift=1,
    )


def stratified(labels: np.ndarray, share: float) -> np.ndarray:
    """A fixed random part of each class: bool [N]."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = keyed_random.permutation(
            len(members), keyed_random.key(_SPLIT_SEED, int(label), keyed_random.SPLIT)
        ).numpy()
        chosen[members[order[: round(len(members) * share)]]] = True
    return chosen


def _enlarged(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 8] -> [N, 16, 16, 1]."""
    large = (Image.fromarray(image).resize((_DIGIT_PX, _DIGIT_PX), Image.Resampling.BILINEAR) for image in images)
    return np.stack([np.asarray(image) for image in large])[..., None]


_CLASSES, _SIDE, _CELLS = 10, 32, 4


def load_synthetic(samples: int) -> Dataset:
    """`samples` training images of 32 x 32 in 10 equally frequent classes, and a quarter as many for testing.

    The same at every call.
    """
    patterns = np.random.default_rng(1).integers(64, 192, (_CLASSES, _CELLS, _CELLS, 3), dtype=np.uint8)
    patterns = patterns.repeat(_SIDE // _CELLS, axis=1).repeat(_SIDE // _CELLS, axis=2)
    train, test = _split(patterns, samples, stream=2), _split(patterns, max(_CLASSES, samples // 4), stream=3)
    assert train.images is not None
    mean, std = channel_statistics(train.images)
    classes = tuple(f"pattern {i}" for i in range(_CLASSES))
    return Dataset("synthetic", classes, train, test, mean, std, (3, _SIDE, _SIDE))


def _split(patterns: np.ndarray, count: int, stream: int) -> Split:
    labels = np.arange(count, dtype=np.int64) % _CLASSES
    noise = np.random.default_rng(stream).integers(0, 128, (count, _SIDE, _SIDE, 3), dtype=np.uint8)
    noise += patterns[labels] - 64  # 0 .. 254: no overflow
    return Split(labels, noise)
