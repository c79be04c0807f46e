"""Takes a validation split out of the training images: the same share of each class, drawn by the run's seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ddp_core.errors import UserError
from ddp_train.data.sources.samples import Dataset, Split

_KEY = 0x7A11D
"""Part of the generator's seed, so that this draw is not correlated with other draws of the run."""


def split_off(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The dataset with `share` of its training images as validation split; both refer to the same images.

    Errors: UserError where there is such a split already, or where a class would have no training image left.
    """
    if dataset.val is not None:
        raise UserError(f"--val-split {share:g}: {dataset.name} has a validation split already")
    labels = dataset.train.labels
    wanted = np.bincount(labels, minlength=len(dataset.classes)) * share
    # By largest remainders, so that the parts add up.
    counts = np.floor(wanted).astype(np.int64)
    missing = round(float(wanted.sum())) - int(counts.sum())
    counts[np.argsort(counts - wanted, kind="stable")[:missing]] += 1
    generator = np.random.default_rng([seed, _KEY])
    taken = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        taken[generator.permutation(np.flatnonzero(labels == label))[:count]] = True
    if not taken.any():
        raise UserError(f"--val-split {share:g}: of {len(labels)} training images that is none")
    left = np.bincount(labels[~taken], minlength=len(dataset.classes))
    if 0 in left[wanted > 0]:
        name = dataset.classes[int(np.flatnonzero((left == 0) & (wanted > 0))[0])]
        raise UserError(f"--val-split {share:g}: leaves no training image of class {name!r}; take less")
    return replace(dataset, train=_part(dataset.train, ~taken), val=_part(dataset.train, taken))


def _part(split: Split, chosen: np.ndarray) -> Split:
    """The chosen samples of a split."""
    rows = np.flatnonzero(chosen)
    return replace(split, labels=split.labels[chosen], rows=rows if split.rows is None else split.rows[rows])
