"""The worst-classified images: those whose true class the model thought least likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_train.config.options import UserError
from ddp_train.plots.style import INK, PALETTE, new_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["Picture", "mistakes_figure"]

COLUMNS, LEAST_COLUMNS = 6, 4


@dataclass(frozen=True, eq=False)
class Picture:
    """A wrongly classified image: uint8 [H, W, C], its true class, what it was taken for and how surely."""

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
    figure = new_figure(2.1 * columns, 2.55 * rows + 0.6, title)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, picture in zip(panels, pictures, strict=False):
        image = picture.image
        grey = image.shape[2] == 1
        panel.imshow(image[:, :, 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
        panel.set_title(f"{_short(picture.label)}\n", fontsize=10, color=INK, pad=3)
        taken = f"taken for {_short(picture.predicted)}, {picture.probability:.0%}"
        panel.text(
            0.5, 1.03, taken, transform=panel.transAxes, ha="center", va="bottom", fontsize=8.5, color=PALETTE[1]
        )
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
