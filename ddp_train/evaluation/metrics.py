"""The metrics of an examination as text, as JSON, and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddp_core.errors import printable
from ddp_train.data.sources.decode import read_image
from ddp_train.data.sources.samples import Dataset
from ddp_train.engine.evaluate import Examination
from ddp_train.plots.examination import CLASSES_UP_TO, Picture, confusion_figure, mistakes_figure
from ddp_train.plots.style import save_if_possible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "ddp-train-evaluation/1"
ROWS = 40
"""Classes in the text; with more classes, the least accurate ones."""


def as_json(found: Examination, classes: Sequence[str]) -> dict[str, object]:
    """Every metric; fractions of 1. The confusion matrix is [true class][predicted class], in the order of classes."""
    rows = zip(classes, found.hits, found.counts, strict=True)
    return {
        "schema": SCHEMA,
        "samples": found.samples,
        "loss": found.loss,
        "top1": found.top1,
        "top5": found.top5,
        "balanced_accuracy": found.balanced_accuracy,
        "per_class": [{"class": c, "samples": n, "accuracy": h / n if n else None} for c, h, n in rows],
        "confusion": found.confusion,
    }


def as_text(found: Examination, classes: Sequence[str]) -> list[str]:
    """Lines: the metrics over all images, then one line per class, with the class that it is most often taken for."""
    classes = [printable(name) for name in classes]
    lines = [f"top-1   {found.top1:8.2%}"]
    lines += [f"top-5   {found.top5:8.2%}"] if found.top5 is not None else []
    lines += [f"balanced{found.balanced_accuracy:8.2%}", f"loss    {found.loss:8.4f}", ""]
    order = [at for at in range(len(classes)) if found.counts[at]]
    if len(order) > ROWS:
        order = sorted(order, key=lambda at: found.hits[at] / found.counts[at])[:ROWS]
        lines += [f"the {ROWS} least accurate of {len(classes)} classes:"]
    width = min(30, max((len(classes[at]) for at in order), default=5))
    lines += [f"{'class':<{width}}  {'images':>8}  {'accuracy':>8}  most often taken for"]
    for at in order:
        share = found.hits[at] / found.counts[at]
        line = f"{classes[at][:width]:<{width}}  {found.counts[at]:>8,}  {share:>8.2%}  {_rival(found, classes, at)}"
        lines.append(line.rstrip())
    return lines


def _rival(found: Examination, classes: Sequence[str], at: int) -> str:
    """The class that a class is most often taken for, with its share; empty without mistakes."""
    if found.confusion is None or found.hits[at] == found.counts[at]:
        return ""
    others = [(count, -other) for other, count in enumerate(found.confusion[at]) if other != at]
    count, other = max(others)
    return f"{classes[-other]} ({count / found.counts[at]:.1%})"


def draw(found: Examination, dataset: Dataset, folder: Path) -> list[Path]:
    """Draw confusion_matrix.png (for a moderate number of classes) and worst_images.png (where there are mistakes).

    Returns the files that were written; for one that cannot be drawn a note is printed.
    """
    names, confusion, written = dataset.classes, found.confusion, []
    if confusion is not None and 2 <= len(names) <= CLASSES_UP_TO:
        written += save_if_possible(lambda: confusion_figure(confusion, names), folder / "confusion_matrix.png")

    def mistakes() -> Figure:
        """The figure of the worst mistakes."""
        pictures = [
            Picture(_image(dataset, one.index), names[one.label], names[one.predicted], one.probability)
            for one in found.mistakes
        ]
        return mistakes_figure(pictures, found.samples - sum(found.hits), found.samples)

    if found.mistakes:
        written += save_if_possible(mistakes, folder / "worst_images.png")
    return written


def _image(dataset: Dataset, index: int) -> np.ndarray:
    """Image `index` of the examined split: uint8 [H, W, C]."""
    split = dataset.held_out[dataset.final]
    if split.images is not None:
        return split.take(np.array([index]))[0]
    assert split.files is not None
    return read_image(split.files[split.row(index)], dataset.image_shape[1:], split.reading)
