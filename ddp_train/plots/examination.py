"""Pictures of an evaluation: the confusion matrix, and the images whose true class the model thought least likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddp_core.errors import UserError
from ddp_train.plots.style import INK, PALETTE, SOFT, grid_of_panels, name_ticks, new_figure, short, style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

CLASSES_UP_TO = 60
"""Most classes in a confusion matrix; with more, the picture is unreadable."""
NUMBERS_UP_TO = 20
"""Up to this many classes, each cell shows its percentage."""
LEVEL_UP_TO = 3
"""If no class name has more letters than this, the names are horizontal, else rotated."""
COLUMNS, LEAST_COLUMNS = 6, 4


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """The confusion matrix: rows are true classes, columns predicted classes, in percent of the row."""
    import numpy as np

    counts = np.asarray(confusion, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = max(6.5, min(20, 2.5 + 0.62 * len(classes))) if len(classes) <= NUMBERS_UP_TO else 16
    accuracy = counts.trace() / max(1.0, counts.sum())
    figure = new_figure(size + 0.8, size, f"Confusion matrix  ·  {int(counts.sum()):,} images, {accuracy:.2%} right")
    axes = figure.subplots()
    style(axes, "", "percent of each true class", "taken for")
    axes.grid(False)
    # The square root keeps rare mistakes visible beside the diagonal.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    axes.spines["bottom"].set_visible(False)
    small = 10 if len(classes) <= NUMBERS_UP_TO else 7
    places = range(len(classes))
    name_ticks(axes, places, classes, size=small, turn=45 if max(map(len, classes)) > LEVEL_UP_TO else 0)
    axes.set_yticks(places, [short(name) for name in classes], fontsize=small, color=INK)
    axes.set_ylabel("true class", fontsize=10, color=SOFT)
    for row, column in np.argwhere(counts).tolist() if len(classes) <= NUMBERS_UP_TO else ():
        share = shares[row, column]
        color = "white" if share > 0.3 else INK
        weight = "bold" if row == column else "normal"
        text = f"{share * 100:.1f}" if share < 0.9995 else "100"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color, weight=weight)
    return figure


@dataclass(frozen=True, eq=False)
class Picture:
    """A wrongly classified image: uint8 [H, W, C], its true class, the predicted class and its probability."""

    image: np.ndarray
    label: str
    predicted: str
    probability: float


def mistakes_figure(pictures: Sequence[Picture], wrong: int, samples: int) -> Figure:
    """A sheet of the pictures, the worst first; `wrong` of `samples` images were misclassified in all."""
    if not pictures:
        raise UserError("there are no mistakes to draw")
    columns = min(COLUMNS, max(len(pictures), LEAST_COLUMNS))
    rows = -(-len(pictures) // columns)
    title = f"Worst-classified images  ·  {len(pictures)} of {wrong:,} mistakes in {samples:,} images"
    figure, panels = grid_of_panels(2.1 * columns, 2.55 * rows + 0.6, title, rows, columns, len(pictures))
    for panel, picture in zip(panels, pictures, strict=True):
        panel.set_axis_off()
        image = picture.image
        grey = image.shape[2] == 1
        panel.imshow(image[:, :, 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
        panel.set_title(f"{short(picture.label, 18)}\n", fontsize=10, color=INK, pad=3)
        taken = f"taken for {short(picture.predicted, 18)}, {picture.probability:.0%}"
        above: dict[str, Any] = {"transform": panel.transAxes, "ha": "center", "va": "bottom"}
        panel.text(0.5, 1.03, taken, fontsize=8.5, color=PALETTE[1], **above)
    return figure
