"""scikit-learn's bundled digits: 1,797 handwritten digits of 8 x 8 pixels and 17 grey levels, always at hand.

The test split is a fixed fifth of each class (scikit-learn has none of its own).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ddp_train.data.augment import keyed_random
from ddp_train.data.sources.samples import Dataset, Split, channel_statistics

__all__ = ["load_digits"]

_SPLIT_SEED = 0
_TEST_SHARE = 0.2
_SIDE = 16  # twice the original: networks with four poolings fit, and a shift by one pixel is by half an original one


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
        "digits", classes, train, test, mean, std, (1, _SIDE, _SIDE), flip_ok=False, padding="zero", largest_shift=1
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
    large = (Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR) for image in images)
    return np.stack([np.asarray(image) for image in large])[..., None]
