"""`--class-weights`: what an image of each class counts in the training loss."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from ddp_core.errors import UserError
from ddp_train.config.yaml_file import read_mapping, shown
from ddp_train.data.sources.samples import Dataset


def weigh_classes(dataset: Dataset, wanted: str) -> Dataset:
    """The dataset with weights of its classes: "balanced" (King and Zeng 2001: images / (classes x images of the
    class), so that all classes weigh the same), or the path of a file of weights.

    Only their ratios matter; they are scaled to a mean of 1 over the training images, so that losses compare.
    Errors: UserError, one line, for a file without a weight above 0 for each class.
    """
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    # A class without images has no effect; its count of 1 only avoids a division by zero.
    weights = 1.0 / np.maximum(counts, 1) if wanted == "balanced" else np.array(_read(wanted, dataset))
    scale = float(counts.sum() / (counts @ weights))
    return replace(dataset, class_weights=tuple((weights * scale).tolist()))


def _read(file: str, dataset: Dataset) -> list[float]:
    """The weights in a file, in the order of the classes."""
    what = f"--class-weights {file}"
    found = read_mapping(Path(file), what, "'CLASS: 2.5' (names that are numbers in quotes)")
    if other := next((name for name in found if name not in dataset.classes), None):
        known = ", ".join(dataset.classes[:10]) + (", ..." if len(dataset.classes) > 10 else "")
        raise UserError(f"{what}: {dataset.name} has no class {shown(other)} (its classes: {known})")
    if missing := [name for name in dataset.classes if name not in found]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{what}: has no weight for the class {missing[0]!r}{more}")
    weights = [found[name] for name in dataset.classes]
    for at, weight in enumerate(weights):
        try:
            weights[at] = math.nan if isinstance(weight, bool) else float(weight)  # YAML takes 1e-3 for a text
        except (ValueError, TypeError, OverflowError):
            weights[at] = math.nan
        if not 1e-6 <= weights[at] <= 1e6:
            name = dataset.classes[at]
            raise UserError(f"{what}: the class {name!r} needs a weight from 1e-6 to 1e6, not {shown(weight)}")
    return weights
