"""Made-up images that need no files: for tests, measurements and trying out a launch.

Each class has its own coarse colour pattern; a sample is its class's pattern under noise, so a network learns them.
"""

from __future__ import annotations

import numpy as np

from ddp_train.data.sources.samples import Dataset, Split, channel_statistics

__all__ = ["load_synthetic"]

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
